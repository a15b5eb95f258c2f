"""`framekd resume`: go on after Snakemake itself was killed."""

from __future__ import annotations

import argparse
import atexit
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from framekd import slurm
from framekd.errors import UserError
from framekd.lease import Lease

RUN = Path(".snakemake/framekd/run")
"""Lease of the run of a folder."""
LONGEST_WAIT = 600.0
"""Seconds that a run waits for a clock that was set back."""


def add(commands: Any) -> None:
    """Add the command's arguments."""
    # No word is an option of this command: all of them are Snakemake's.
    out = commands.add_parser(
        "resume", help="go on after Snakemake was killed: unlock its folder, start it again", prefix_chars="+"
    )
    out.set_defaults(run=resume)
    out.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="…", help="Snakemake's arguments, as for the run that was killed"
    )


def hold() -> None:
    """Say that a run goes on in this folder, while this process lives; Snakemake's lock refuses a second one."""
    lease = Lease(RUN)
    lease.take()
    atexit.register(lease.release)


def wait_for_clock(*folders: str | Path) -> None:
    """Wait until the newest file in `folders` is in the past, up to `LONGEST_WAIT` seconds.

    After a clock was set back, a job's outputs are older than its inputs. Snakemake takes that for a fault of the
    clock, and deletes them.
    """
    when, newest = max(_dated(folders), default=(0.0, ""))
    ahead = when - time.time()
    if ahead <= 0:
        return
    said = f"{newest} is dated {ahead:.0f} s in the future"
    if ahead > LONGEST_WAIT:
        print(f"{said}; correct the clock of this machine, or touch the file", file=sys.stderr, flush=True)
        return
    print(f"{said}: was the clock set back? The run begins when that time has come", file=sys.stderr, flush=True)
    time.sleep(ahead)


def _dated(folders: Iterable[str | Path]) -> Iterator[tuple[float, str]]:
    """Modification times of the files in the folders, with their paths."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            for path in (Path(place, name) for name in names):
                with suppress(FileNotFoundError):  # of a job that outlived its Snakemake
                    yield path.stat(follow_symlinks=False).st_mtime, str(path)


def resume(given: argparse.Namespace) -> int:
    """Unlock the folder of a run that has died, say what still runs, and start Snakemake; returns its exit code."""
    arguments = given.arguments
    if not Path("Snakefile").is_file():
        raise UserError("there is no Snakefile here; run this where you started Snakemake")
    lease = Lease(RUN)
    if (who := lease.take()) is not None:
        raise UserError(
            f"{who} runs Snakemake in this folder; end it first (one that was killed on another machine counts as "
            f"ended after {lease.stale:.0f} s)"
        )
    lease.release()
    snakemake = [sys.executable, "-m", "snakemake"]
    if any(Path(".snakemake/locks").glob("*")):
        run = subprocess.run([*snakemake, "--unlock", *arguments], capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"snakemake --unlock failed: {(run.stderr or run.stdout).strip()[-2000:]}")
        print("framekd resume: the folder was locked by a run that has ended; it is unlocked", flush=True)
    for line in _running():
        print(f"framekd resume: still in Slurm: {line}", flush=True)
    return subprocess.run([*snakemake, *arguments]).returncode


def _running() -> list[str]:
    """Jobs of this folder that wait or run in Slurm."""
    lines = [line.split("|") for line in (slurm.ask("squeue", "--me", "-h", "-o", "%i|%T|%j|%Z") or "").splitlines()]
    here = Path.cwd().resolve()
    return [" ".join(line[:3]) for line in lines if len(line) > 3 and Path(line[3]).resolve() == here]
