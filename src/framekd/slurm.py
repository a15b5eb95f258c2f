"""What a job of Slurm knows and asks of Slurm: None or False outside Slurm, and where Slurm does not answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from datetime import datetime
from functools import cache

ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
"""States that a job does not leave by itself."""
WALL_TIME = "the wall time is nearly over"


def ask(*command: str, seconds: float = 20.0) -> str | None:
    """What a command of Slurm prints; None if it fails, does not answer or does not exist."""
    if shutil.which(command[0]) is None:
        return None
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout if run.returncode == 0 else None


def job_id() -> str | None:
    """The number of the job that this process runs in."""
    return os.environ.get("SLURM_JOB_ID")


def state(job: str) -> str | None:
    """State of a job such as "RUNNING"; "" if Slurm does not know it any more, None if Slurm does not answer."""
    if shutil.which("squeue") is None:
        return None
    try:
        command = ["squeue", "-h", "--states=all", "-j", job, "-o", "%T"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if run.returncode:
        return "" if "Invalid job id" in run.stderr else None
    return (run.stdout.split() or [""])[0]


def end_time() -> float | None:
    """When Slurm ends this process's job, in seconds since 1970."""
    if (given := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():
        return float(given)
    return None if (job := job_id()) is None else _end_of(job)


@cache
def _end_of(job: str) -> float | None:
    found = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", ask("scontrol", "show", "job", job) or "")
    return datetime.fromisoformat(found[1]).timestamp() if found else None


def leave_at() -> float | None:
    """When work should be saved and left: a tenth of the time before the job's end, at least 20 s, at most 5 min."""
    end = end_time()
    return None if end is None else end - _margin(end)


@cache
def _margin(end: float) -> float:
    """A tenth of what is left when a process first asks."""
    return min(300.0, max(20.0, 0.1 * (end - time.time())))


def requeue() -> bool:
    """Ask Slurm to run this job again from its start; it then ends this process. False if Slurm refuses."""
    job = job_id()
    return job is not None and ask("scontrol", "requeue", job) is not None
