"""Progress of a Snakemake run on stdout: jobs done of planned, time elapsed, time left, running rules, errors.

Snakemake's own messages still go to stderr. The plugin on PyPI (rich) prints no progress where stdout is not a terminal
and no time left.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

WIDTH = 24
"""Characters of the bar."""


class Progress:
    """Counts and times of jobs, by rule."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock, self.start = clock, clock()
        self.planned: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.running: dict[int, tuple[str, float]] = {}

    def begin(self, job: int, rule: str) -> None:
        """A job starts."""
        self.running[job] = (rule, self.clock())

    def finish(self, job: int) -> None:
        """A job ends successfully."""
        rule, began = self.running.pop(job)
        self.done[rule] += 1
        self.seconds[rule] = self.seconds.get(rule, 0.0) + self.clock() - began

    def left(self) -> float | None:
        """Seconds to go: mean time of each rule, at the number of parallel jobs so far. None before 8 jobs are done."""
        done, spent = self.done.total(), sum(self.seconds.values())
        if done < 8 or spent <= 0:
            return None
        mean = {rule: self.seconds[rule] / n for rule, n in self.done.items()}
        work = sum(mean.get(rule, spent / done) * max(0, n - self.done[rule]) for rule, n in self.planned.items())
        return work * (self.clock() - self.start) / spent

    def line(self) -> str:
        """The state in one line."""
        done, planned, left = self.done.total(), max(self.planned.total(), self.done.total(), 1), self.left()
        bar = ("█" * (WIDTH * done // planned)).ljust(WIDTH, "·")
        rest = "…" if left is None else f"about {clock_time(left)} left"
        rules = ", ".join(sorted({rule for rule, _ in self.running.values()}))
        return f"{bar} {done:3d}/{planned} jobs  {clock_time(self.clock() - self.start)}  {rest}  {rules}"


def clock_time(seconds: float) -> str:
    """Minutes and seconds: 65.0 is 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class LogHandler(LogHandlerBase):
    """Print a line after each job; on a terminal, redraw one line."""

    writes_to_stream = False  # so that Snakemake's own handler keeps writing to stderr
    writes_to_file = False
    has_filter = True
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.progress, self.on_line = Progress(), False

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one of Snakemake's log records."""
        fields = record.__dict__
        event = fields.get("event")
        if event == LogEvent.RUN_INFO:
            self.progress.planned = Counter({rule: n for rule, n in fields["stats"].items() if rule != "total"})
        elif event == LogEvent.JOB_INFO:
            self.progress.begin(fields["jobid"], fields["rule_name"])
        elif event == LogEvent.JOB_FINISHED:
            self.progress.finish(fields["job_id"])
            self._show()
        elif record.levelno >= logging.ERROR:
            self._end_line()
            print(self.format(record), flush=True)

    def _show(self) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K{self.progress.line()[:118]}", end="", flush=True)
            self.on_line = True
        else:
            print(self.progress.line(), flush=True)

    def _end_line(self) -> None:
        if self.on_line:
            print(flush=True)
        self.on_line = False

    def close(self) -> None:
        """End the redrawn line."""
        self._end_line()
        super().close()
