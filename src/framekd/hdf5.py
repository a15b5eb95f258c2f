"""HDF5 files from elsewhere: the library reads some damaged ones without end, and crashes on others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from framekd.errors import UserError

SECONDS = 30
"""Processor time in which the names of a file must be read; those of two million clips take 3 s."""
READ = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
import h5py
with h5py.File(sys.argv[2], "r") as file:
    for value in file.attrs.values():
        pass
    for name in sys.argv[3:]:
        if name in file and file[name].nbytes <= 100 * file.id.get_filesize():
            file[name][:]
"""


def refuse_endless(path: str | Path, names: Sequence[str]) -> None:
    """Read the attributes of a file and some of its datasets in another process, which can be ended.

    Strings of variable length are in a heap that has no checksum. A damaged one can be a loop (HDF5 2.0).

    Args:
        path: the file.
        names: its datasets of strings. The file may lack some.
    Raises:
        UserError: the other process did not come to an end, or crashed. What it merely could not read is no matter of
            this function.
    """
    run = subprocess.run([sys.executable, "-c", READ, str(SECONDS), str(path), *names], capture_output=True)
    if run.returncode < 0:
        why = f"HDF5 cannot read its names: signal {-run.returncode}"
        raise UserError(f"{path} is damaged ({why}); make, copy or fetch it again")
