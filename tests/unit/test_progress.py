"""The progress that `make demo` shows, from Snakemake's own events."""

import subprocess
import sys

import pytest

from snakemake_logger_plugin_framekd.progress import Progress, clock_time


def test_the_time_left_follows_the_mean_time_of_each_rule():
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.planned.update(short=10, long=4)
    for job in range(8):
        rule = "long" if job >= 6 else "short"
        progress.begin(job, rule)
        assert progress.left() is None
        now[0] += 10.0 if rule == "long" else 1.0
        progress.finish(job)
    assert progress.left() == pytest.approx(4 * 1.0 + 2 * 10.0)
    progress.begin(8, "long")
    text = progress.line()
    assert "8/14 jobs" in text and "0:26" in text and "about 0:24 left" in text and text.endswith("  long")
    assert text.count("█") == 24 * 8 // 14


def test_two_jobs_at_a_time_take_half_as_long():
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    progress.planned.update(rule=16)
    for pair in range(4):
        progress.begin(2 * pair, "rule")
        progress.begin(2 * pair + 1, "rule")
        now[0] += 5.0
        progress.finish(2 * pair)
        progress.finish(2 * pair + 1)
    assert progress.left() == pytest.approx(20.0)
    assert clock_time(125.9) == "2:05"


WORKFLOW = """
rule all:
    input: "1.txt", "2.txt", "bad.txt"
rule good:
    output: "{i,[0-9]}.txt"
    shell: "touch {output}"
rule bad:
    input: "1.txt", "2.txt"
    output: "bad.txt"
    shell: "echo broken; false"
"""


def test_snakemake_shows_progress_and_errors_on_stdout_and_the_rest_on_stderr(tmp_path):
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--logger", "framekd"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "1/4 jobs" in lines[0] and "2/4 jobs" in lines[1]
    assert "Error in rule bad:" in done.stdout and "Building DAG" not in done.stdout
    assert "Building DAG" in done.stderr and "Finished jobid" in done.stderr
