"""A job that is started twice, a job that reaches its wall time: what its log says, and what Slurm is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from framekd import lease
lease.STALE = 5.0
from framekd.pipeline import job_log
job = SimpleNamespace(
    rule="r", log=["logs/r.log"], threads=1, resources={}, params=SimpleNamespace(job={}), input=[], output=[]
)
with job_log(job, resumes=len(sys.argv) > 3):
    print("begins", sys.argv[1], flush=True)
    Path("began").touch()
    time.sleep(float(sys.argv[2]))
    if sys.argv[1].startswith("leaves"):
        class Stopped(SystemExit):
            def __str__(self):
                return sys.argv[1].partition(":")[2]

        raise Stopped(75)
    print("ends", sys.argv[1], flush=True)
"""


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    (folder / "logs").mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-c", JOB, *arguments], cwd=folder, env=environment)


def until(ready, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_duplicate_waits_says_so_in_a_log_of_its_own_and_keeps_the_log_of_the_first(tmp_path):
    first = start(tmp_path, "first", "3")
    until((tmp_path / "began").exists)
    second = start(tmp_path, "second", "0")
    until(lambda: list((tmp_path / "logs").glob("r.waiting-*.log")))
    (own,) = (tmp_path / "logs").glob("r.waiting-*.log")
    assert re.search(rf"process {first.pid} on \S+ works on this already; waiting for it", own.read_text())
    assert (tmp_path / "logs/r.log").read_text() == "begins first\n"
    assert first.wait(20) == 0 and second.wait(20) == 0
    text = (tmp_path / "logs/r.log").read_text()
    assert text.startswith("begins first\nends first\nframekd: ") and text.endswith("begins second\nends second\n")
    assert "waited until here" in text and not own.exists() and (tmp_path / "logs/r.json").is_file()


def test_a_duplicate_takes_over_from_a_killed_job(tmp_path):
    first = start(tmp_path, "first", "60")
    until((tmp_path / "began").exists)
    second = start(tmp_path, "second", "0")
    until(lambda: list((tmp_path / "logs").glob("r.waiting-*.log")))
    first.kill()
    first.wait()
    assert second.wait(20) == 0
    assert (tmp_path / "logs/r.log").read_text().endswith("begins second\nends second\n")


@pytest.fixture
def scontrol(tmp_path) -> dict[str, str]:
    """An environment of a Slurm job whose `scontrol` writes down what it is asked."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def test_a_training_that_reaches_its_wall_time_runs_again_until_a_whole_one_brings_nothing(tmp_path, scontrol):
    end = str(int(time.time()) + 3600)
    for said, requeued in [("step 3", 1), ("step 7", 2), ("step 7", 2)]:
        why = f"leaves:the wall time is nearly over; saved after {said}"
        assert start(tmp_path, why, "0", SLURM_JOB_END_TIME=end, **scontrol).wait(30) == 75
        assert asked(tmp_path).count("requeue 5") == requeued
    assert "a whole wall time brought it no further" in (tmp_path / "logs/r.log").read_text()


def test_a_training_that_stops_for_another_reason_does_not_run_again_by_itself(tmp_path, scontrol):
    assert start(tmp_path, "leaves:SIGTERM came; saved after step 3", "0", **scontrol).wait(30) == 75
    assert "requeue 5" not in asked(tmp_path)


def test_a_stage_that_goes_on_where_it_was_is_queued_again_before_its_wall_time(tmp_path, scontrol):
    end = str(int(time.time()) + 22)  # 20 s are the margin
    process = start(tmp_path, "acquires", "30", "resumes", SLURM_JOB_END_TIME=end, **scontrol)
    until((tmp_path / "began").exists)
    until(lambda: "Slurm job 5 runs again and goes on" in (tmp_path / "logs/r.log").read_text())
    process.kill()
    process.wait()
    assert asked(tmp_path) == ["requeue 5"]
