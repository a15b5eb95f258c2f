"""The context that every script of the graph runs in."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from framekd import slurm
from framekd.config import UserError
from framekd.files import write_json, write_text
from framekd.gpus import assigned
from framekd.lease import Lease
from framekd.memory import keep_freed_memory

OTHERS_KEPT = "the others are finished and kept"
"""What a job says at last of which some pieces failed: see :func:`framekd.pipeline.kept.each`."""

AGAIN = 75
"""Exit code of work that was saved and left, to be continued (EX_TEMPFAIL of sysexits.h)."""
LEASES = ".leases"


@contextlib.contextmanager
def job_log(snakemake: Any, *, resumes: bool = False) -> Iterator[None]:
    """Run a stage: write its output to its log, and limit numerical libraries to its threads.

    A user's mistake becomes one sentence in the log and exit code 1. Any other error leaves its traceback there. A job
    that ends well leaves its record beside the log (see :func:`record`). While another process works on the same job,
    this one waits, and says so in a log of its own. Under Slurm, work that ends because of its wall time runs again.

    Args:
        snakemake: the object of this name that Snakemake gives a script: rule, log, threads, resources, params, input,
            output.
        resumes: whether the stage goes on where a killed process was, and does not itself leave before the wall time.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(snakemake.threads)
    keep_freed_memory()
    log, began = Path(snakemake.log[0]), time.time()
    lease = Lease(log.parent / LEASES / log.stem)
    waited = _wait_for(lease, log)
    with contextlib.ExitStack() as leaving:
        leaving.callback(lease.release)
        # A log without a record is that of a job that did not end well.
        log.with_suffix(".json").unlink(missing_ok=True)
        leaving.enter_context(_run(snakemake, log, began, waited, resumes))
        yield


@contextlib.contextmanager
def _run(snakemake: Any, log: Path, began: float, waited: str, resumes: bool) -> Iterator[None]:
    with (
        log.open("a" if waited else "w", buffering=1) as stream,  # after a wait, the log is that of the other process
        _descriptors_to(stream),
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        stream.write(waited)
        try:
            with (
                assigned(int(snakemake.resources.get("gpu", 0))),
                _again_at_the_wall_time(log) if resumes else contextlib.nullcontext(),
            ):
                yield
        except (UserError, FileNotFoundError) as error:
            print(f"framekd: {error}", file=stream)
            sys.exit(1)
        except SystemExit as error:  # a training that was asked to stop, and saved its state
            print(f"framekd: {error}", file=stream)
            if error.code == AGAIN and (why := str(error)) and (slurm.WALL_TIME in why or "SIGUSR1" in why):
                print(_again(log, why), file=stream)
            raise
        except BaseException:
            traceback.print_exc(file=stream)
            raise
        write_json(log.with_suffix(".json"), record(snakemake, began))


def why_ended(log: Path) -> str | None:
    """The error that a job wrote last into its log; None if it wrote none, because it was killed or still runs."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if last.startswith("framekd: "):
        return last.removeprefix("framekd: ")
    return last if any(line.startswith("Traceback ") for line in lines) else None


def _wait_for(lease: Lease, log: Path) -> str:
    """Take the lease of a job; returns what was said while another process held it, "" if none did."""
    own = log.with_name(f"{log.stem}.waiting-{socket.gethostname()}-{os.getpid()}.log")
    lines: list[str] = []

    def says(sentence: str) -> None:
        lines.append(f"framekd: {time.strftime('%F %T')}: {sentence}\n")
        write_text(own, "".join(lines))

    lease.wait(says)
    if lines:
        lines.append(f"framekd: {time.strftime('%F %T')}: waited until here; what is finished is not done again\n")
        own.unlink(missing_ok=True)
    return "".join(lines)


def _again(log: Path, why: str) -> str:
    """Let Slurm run this job again unless nothing came of its last run; returns what to say."""
    if slurm.job_id() is None:
        return "framekd: start it again to go on"
    last = log.parent / LEASES / f"{log.stem}.left"
    if last.is_file() and last.read_text() == why:
        last.unlink()
        return "framekd: a whole wall time brought it no further; give it more: resources: {STAGE: {runtime: MINUTES}}"
    write_text(last, why)
    if not slurm.requeue():
        return "framekd: Slurm does not run it again by itself (scontrol requeue is refused)"
    return f"framekd: Slurm job {slurm.job_id()} runs again and goes on"


@contextlib.contextmanager
def _again_at_the_wall_time(log: Path) -> Iterator[None]:
    """Let Slurm run the job again when its wall time is nearly over, 20 times at most."""
    leave = slurm.leave_at()
    if leave is None or int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= 20:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        if not done.wait(max(0.0, leave - time.time())):
            print(_again(log, f"{slurm.WALL_TIME} ({time.time():.0f})"), flush=True)

    threading.Thread(target=watch, daemon=True, name="wall time").start()
    try:
        yield
    finally:
        done.set()


def record(snakemake: Any, began: float) -> dict[str, Any]:
    """What a finished job was: the rule, the whole job, the files it read and wrote, and when it ran."""
    return {
        "rule": snakemake.rule,
        "job": snakemake.params.job,
        "inputs": sorted({str(path) for path in snakemake.input}),
        "outputs": sorted({str(path) for path in snakemake.output}),
        "began": round(began, 3),
        "seconds": round(time.time() - began, 3),
    }


def named(files: Any) -> dict[str, Any]:
    """Snakemake's inputs or outputs as a plain dict: name → path, or list of paths."""
    return {name: value if isinstance(value, str) else list(value) for name, value in files.items()}


@contextlib.contextmanager
def _descriptors_to(stream: TextIO) -> Iterator[None]:
    """Redirect file descriptors 1 and 2 too: child processes and C libraries write to these."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        yield
    finally:
        for number, before in zip((1, 2), saved):
            os.dup2(before, number)
            os.close(before)
