"""An executor plugin for Snakemake, which finds it by the name of this package: ``executor: framekd-slurm``.

It is snakemake-executor-plugin-slurm with five differences:

* a job's name says what it is, such as ``teacher_pack1_seed1_2.proposed.4f1c2a9b``;
* a job that a killed Snakemake left behind is taken over when the same job is wanted again, not submitted twice;
* a job that Slurm lost, or preempted and does not requeue, is submitted again; nobody waits for it for ever;
* a slow answer of Slurm at the start does not end the watch of jobs;
* a job that Slurm can never run (partition, account, type of GPU) fails once, with Slurm's reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as stock
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

FAILED = frozenset(("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"))
UNLESS_REQUEUED = frozenset(("NODE_FAIL", "PREEMPTED"))
"""Final states, unless Slurm queues the job again."""
PATIENCE = 3
"""Looks after which a job that is not known, or not queued again, is given up."""
NEVER = re.compile(
    "node configuration is not available|[Ii]nvalid (account|partition|qos|feature|generic resource|gres|wckey)"
    "|not permitted to use|access denied|[Mm]ore processors requested than permitted|[Mm]emory specification can not",
)
"""What sbatch says of a job that it will never take."""


class Executor(stock.Executor):
    """Submits jobs to Slurm, and watches them."""

    _ready = False

    def __init__(self, workflow: Any, logger: Any) -> None:
        super().__init__(workflow, logger)
        self._ready = True

    async def _wait_for_jobs(self) -> None:
        # The base class starts this in a thread, and only then sets up what it uses. Where Slurm answered slowly, the
        # thread died of that, and the run waited for ever.
        while not self._ready:
            await asyncio.sleep(0.1)
        await super()._wait_for_jobs()

    def __post_init__(self, test_mode: bool = False) -> None:
        self._local, self._looks = threading.local(), dict[str, int]()
        super().__post_init__(test_mode)
        self._left_behind = _queued(str(Path(self.workflow.workdir_init)))

    @property
    def run_uuid(self) -> str:
        """The name of the job that this thread submits."""
        return getattr(self._local, "name", None) or self._uuid

    @run_uuid.setter
    def run_uuid(self, value: str) -> None:
        self._uuid = value

    def run_job(self, job: Any) -> None:
        """Submit a job, or take over one that an earlier run left behind."""
        name = job_name(job)
        if (found := self._left_behind.pop(name, None)) is not None:
            log = self.slurm_logdir / f"{found}.log"
            self.logger.info(f"Job {job.jobid} runs already, as Slurm job {found} of an earlier run; it is waited for.")
            info = SubmittedJobInfo(job, external_jobid=found, aux={"slurm_logfile": log, "since": 0.0})
            self._report_job_submission_threadsafe(info)
            return
        self._local.name = name
        try:
            super().run_job(job)
        finally:
            self._local.name = None

    def _report_job_error_threadsafe(self, job_info: SubmittedJobInfo, msg: str) -> None:
        if found := re.search(r"The error message was '(.*?)'\.\n", msg, flags=re.S):
            reason = " ".join(found[1].split())
            if NEVER.search(reason):
                job_info.job.attempt = job_info.job.restart_times + 1  # another attempt would end the same way
                msg = (
                    f"Slurm refuses it: {reason}. Look at the stage's line under resources in your configuration, "
                    "and ask framekd doctor --slurm. "
                )
        super()._report_job_error_threadsafe(job_info, msg)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Report the jobs that have ended; yield the others."""
        first = self.workflow.executor_settings.init_seconds_before_status_checks
        async with self.status_rate_limiter:
            states = await asyncio.to_thread(
                _states, self.get_status_command(), [j.external_jobid for j in active_jobs]
            )
        before = len(active_jobs)
        for info in active_jobs:
            verdict = None if states is None else self._verdict(info, states.get(info.external_jobid, ""))
            if verdict is None:
                yield info
                continue
            before -= 1
            self._looks.pop(info.external_jobid, None)
            if verdict == "COMPLETED":
                self.report_job_success(info)
            else:
                logs = [str(info.aux["slurm_logfile"])] if info.aux["slurm_logfile"].exists() else []
                self.report_job_error(info, msg=f"Slurm job {info.external_jobid}: {verdict}. ", aux_logs=logs)
        ended = before < len(active_jobs)
        wait = first if ended else min(self.next_seconds_between_status_checks + 5, max(60, first))
        self.next_seconds_between_status_checks = wait

    def _verdict(self, info: SubmittedJobInfo, state: str) -> str | None:
        """How a job ended: "COMPLETED", or why it failed; None if it has not."""
        if state == "COMPLETED" or state in FAILED:
            return state
        if state and state not in UNLESS_REQUEUED:
            self._looks.pop(info.external_jobid, None)
            return None
        looks = self._looks[info.external_jobid] = self._looks.get(info.external_jobid, 0) + 1
        if looks < PATIENCE:
            return None
        if state:
            return f"{state}, and Slurm does not queue it again"
        return "COMPLETED" if _recorded(info) else "Slurm does not know it any more, and it left no record of its end"


def job_name(job: Any) -> str:
    """Rule and wildcards of a job, and a hash of what it is, so that another configuration gives another name."""
    members = sorted(job.jobs, key=lambda member: member.jobid) if job.is_group() else [job]
    about = [[m.name, dict(m.wildcards_dict), m.params.get("identity"), list(m.input), list(m.output)] for m in members]
    text = json.dumps(about, sort_keys=True, default=str)
    parts = [str(job.name), *map(str, () if job.is_group() else job.wildcards_dict.values())]
    short = re.sub(r"[^\w.-]+", "_", ".".join(parts))[:60]
    return f"{short}.{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _recorded(info: SubmittedJobInfo) -> bool:
    """Whether a job left its record, which is written when all of its work is done (framekd.pipeline.log)."""
    logs = [] if info.job.is_group() else [Path(str(path)).with_suffix(".json") for path in info.job.log]
    return bool(logs) and all(path.is_file() for path in logs)


def _ask(command: list[str]) -> list[list[str]] | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.split("|") for line in run.stdout.splitlines()]


def _states(command: str | None, jobs: list[str | None]) -> dict[str, str] | None:
    """States by job; None if Slurm does not answer."""
    if command == "sacct":
        since = time.strftime("%Y-%m-%d", time.localtime(time.time() - 30 * 86400))
        ask = ["sacct", "-X", "-n", "-P", "-S", since, "-o", "JobIDRaw,State", "-j", ",".join(filter(None, jobs))]
    else:
        ask = ["squeue", "--me", "--states=all", "-h", "-o", "%i|%T"]
    lines = _ask(ask)
    return None if lines is None else {line[0]: (line[1].split() or [""])[0] for line in lines if len(line) > 1}


def _queued(folder: str) -> dict[str, str]:
    """Jobs of this user that wait or run in `folder`: number by name."""
    lines = _ask(["squeue", "--me", "-h", "-o", "%i|%j|%Z"]) or []
    return {
        line[1]: line[0] for line in lines if len(line) > 2 and os.path.realpath(line[2]) == os.path.realpath(folder)
    }
