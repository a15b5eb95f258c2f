"""Run the whole pipeline on the embedded miniature and show how far it is: what `make demo` calls.

Snakemake's own words go to results/demo/logs/snakemake.log; CORES=n uses more than two cores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "demo"
LOG = OUT / "logs" / "snakemake.log"
MEMORY_MB = 6000
COMMAND = ["snakemake", "--configfile", "config/demo.yaml", "--resources", f"mem_mb={MEMORY_MB}", "--cores"]


class Watch(threading.Thread):
    """The most memory that a process and its children used together (proportional share, in MB)."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak = psutil.Process(pid), 0.0

    def run(self) -> None:
        while self.root.is_running():
            try:
                family = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(_memory, family)) / 2**20)
            time.sleep(3.0)  # reading the maps of a process costs it time


def _memory(process: psutil.Process) -> int:
    try:
        used = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(used, "pss", used.rss)


class Progress:
    """Counts of jobs from Snakemake's log, and the time that is still to go, judged by the rules' own mean times."""

    def __init__(self) -> None:
        self.start = time.time()
        self.planned: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.spent: Counter[str] = Counter()
        self.running: dict[str, tuple[str, float]] = {}
        self.last = ""
        self.table = False

    def read(self, line: str) -> None:
        """Take in one line of the log."""
        if line.startswith("Job stats"):
            self.table = True
        elif self.table and (match := re.match(r"(\S+)\s+(\d+)$", line.strip())):
            self.table = match[1] != "total"
            if self.table:
                self.planned[match[1]] = int(match[2])
        elif match := re.match(r"(?:local)?rule (\S+):|\s+(?:wildcards): (.+)|\s+jobid: (\d+)", line):
            self._begin(match)
        elif match := re.match(r"Finished jobid: (\d+) \(Rule: (\S+)\)", line):
            _, began = self.running.pop(match[1], (match[2], time.time()))
            self.done[match[2]] += 1
            self.spent[match[2]] += time.time() - began
            self._show()

    def _begin(self, match: re.Match) -> None:
        if match[1]:
            self.rule = match[1]
        elif match[3]:
            self.running[match[3]] = (self.rule, time.time())
        else:
            self.last = match[2]

    def left(self) -> float | None:
        """Seconds to go, two jobs at a time; None before enough is known."""
        known = {rule: self.spent[rule] / n for rule, n in self.done.items()}
        if sum(self.done.values()) < 8:
            return None
        default = sum(self.spent.values()) / sum(self.done.values())
        work = sum(known.get(rule, default) * (n - self.done[rule]) for rule, n in self.planned.items())
        return work / 2

    def _show(self) -> None:
        done, planned = sum(self.done.values()), sum(self.planned.values())
        left, now = self.left(), sorted({re.sub(r"_seed.*", "", rule) for rule, _ in self.running.values()})
        rest = f"about {_clock(left)} left" if left is not None else "…"
        width = 24 * done // max(planned, 1)
        bar = "█" * width + "·" * (24 - width)
        text = f"{bar} {done:3d}/{planned} jobs  {_clock(time.time() - self.start)}  {rest}  {', '.join(now)}"
        if sys.stdout.isatty():
            print(f"\r\x1b[K{text[:118]}", end="", flush=True)
        else:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main() -> int:
    """Run, show, and print the tables."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    cores = os.environ.get("CORES", "2")
    began = time.time()
    progress = Progress()
    command = [str(ROOT / ".venv" / "bin" / COMMAND[0]), *COMMAND[1:], cores, *sys.argv[1:]]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
    with LOG.open("a") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        watch = Watch(process.pid)
        watch.start()
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            log.write(line)
            progress.read(line.rstrip("\n"))
            tail = [*tail[-39:], line]
        code = process.wait()
    print()
    if code:
        print("".join(tail))
        print(f"make demo: stopped; the whole log is {LOG.relative_to(ROOT)}. Run again to go on from here.")
        return code
    for name in ("table1.md", "table2.md"):
        print((OUT / name).read_text())
    took = f"{_clock(time.time() - began)} min, at most {watch.peak / 1000:.1f} GB"
    print(f"make demo: done in {took}; look at {(OUT / 'report.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
