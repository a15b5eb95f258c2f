"""GPUs of a machine without a scheduler: each is given to one job at a time."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from framekd import slurm
from framekd.lease import Lease

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, or all of the machine."""
    if (given := os.environ.get(VARIABLE)) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return run.stdout.split()


@contextmanager
def assigned(count: int, says: Callable[[str], None] = print) -> Iterator[list[str]]:
    """Hold `count` GPUs that no other job of this user holds, and show torch only these; wait until so many are free.

    Under Slurm, which assigns GPUs itself, and on a machine without one it does nothing. Call it before CUDA starts.

    Args:
        count: how many; if there are fewer, all of them.
        says: gets a sentence when the wait begins.
    """
    names = [] if slurm.job_id() is not None or not count else visible()
    if not names:
        yield []
        return
    folder, count = Path(tempfile.gettempdir()) / f"framekd-gpus-{os.getuid()}", min(count, len(names))
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    said = False
    while len(held := _take(folder, names, count)) < count:
        for lease in held.values():
            lease.release()
        if not said:
            says(f"waiting for {count} free of the GPUs {', '.join(names)}")
            said = True
        time.sleep(1 + os.getpid() % 10 / 10)
    before, os.environ[VARIABLE] = os.environ.get(VARIABLE), ",".join(held)
    try:
        yield list(held)
    finally:
        for lease in held.values():
            lease.release()
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def _take(folder: Path, names: list[str], count: int) -> dict[str, Lease]:
    """Leases of the first free GPUs, at most `count`."""
    held: dict[str, Lease] = {}
    for name in names:
        lease = Lease(folder / name)
        if len(held) < count and lease.take() is None:
            held[name] = lease
    return held
