"""Where compiled kernels are kept, and how several processes share one compilation.

Numba's own choice is the package's folder, which is read-only in many installations, and it compiles once per process
when several start together. Here the machine code lives in one folder per user, and a file lock lets the first process
compile while the others wait and then load.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType


def cache_folder() -> Path:
    """Folder of the compiled kernels: $NUMBA_CACHE_DIR, $FRAMEKD_CACHE, the user's cache, or a temporary folder."""
    for name in ("NUMBA_CACHE_DIR", "FRAMEKD_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]) / ("" if name == "NUMBA_CACHE_DIR" else "numba")
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    for root in (Path(home) / "framekd", Path(tempfile.gettempdir()) / f"framekd-{os.getuid()}"):
        folder = root / "numba"
        # In a shared temporary folder somebody else could have made it first: never load code from a stranger's folder.
        if _writable(folder) and folder.stat().st_uid == os.getuid():
            return folder
    return Path(tempfile.mkdtemp(prefix="framekd-numba-"))


def _writable(folder: Path) -> bool:
    """Whether files can be made in the folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@cache
def kernels(name: str) -> ModuleType:
    """The module `framekd.metrics._<name>_kernels`: compiled on first use, loaded from the cache afterwards."""
    from filelock import FileLock
    from numba.core import config

    folder = cache_folder()
    settings = vars(config)  # their names are made at run time
    before = settings["CACHE_DIR"]
    with ExitStack() as stack:
        # a cache made beforehand and mounted read-only needs no lock, and cannot have one
        if _writable(folder):
            stack.enter_context(FileLock(folder / f"{name}.lock"))
        settings["CACHE_DIR"] = str(folder)
        try:
            return importlib.import_module(f"framekd.metrics._{name}_kernels")
        finally:
            settings["CACHE_DIR"] = before


def cores(threads: int | None = None) -> int:
    """Threads to use: those asked for, or the cores this process may run on."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, but is {threads}.")
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
