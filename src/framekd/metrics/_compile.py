"""Where compiled kernels are stored, and how several processes share one compilation.

Numba's default is the package's folder, which is often read-only, and every process compiles for itself. Here the
machine code is stored in one folder per user. A file lock lets the first process compile; the others wait, then load.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType

from framekd.errors import UserError


def cache_folder() -> Path:
    """Folder of the compiled kernels: $NUMBA_CACHE_DIR, $FRAMEKD_CACHE, the user's cache, or a temporary folder."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return Path(os.environ["NUMBA_CACHE_DIR"])
    if os.environ.get("FRAMEKD_CACHE"):
        return Path(os.environ["FRAMEKD_CACHE"]) / "numba"
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    for root in (Path(home) / "framekd", Path(tempfile.gettempdir()) / f"framekd-{os.getuid()}"):
        folder = root / "numba"
        # Another user may have created a folder in a shared temporary directory. Never load code from it, nor from a
        # folder of ours in theirs: who owns the parent can exchange it.
        if _writable(folder) and _ours(root) and _ours(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="framekd-numba-"))


def _ours(folder: Path) -> bool:
    """Whether a folder (no link) is this user's, and nobody else but its group can write to it."""
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & stat.S_IWOTH


def _writable(folder: Path) -> bool:
    """Whether files can be created in the folder. Creates the folder if it is absent."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@cache
def kernels(name: str) -> ModuleType:
    """Return `framekd.metrics._<name>_kernels`: compiled on first use, loaded from the cache afterwards.

    Raises:
        UserError: numba is not installed.
    """
    from filelock import FileLock

    try:
        from numba.core import config
    except ImportError as error:
        raise UserError("Scores need numba, which is not installed: pip install 'framekd[evaluate]'.") from error

    folder = cache_folder()
    settings = vars(config)  # numba creates these names at run time
    before = settings["CACHE_DIR"]
    with ExitStack() as stack:
        # A cache that is mounted read-only is complete: it needs no lock, and cannot have one.
        if _writable(folder):
            stack.enter_context(FileLock(folder / f"{name}.lock"))
        settings["CACHE_DIR"] = str(folder)
        try:
            return importlib.import_module(f"framekd.metrics._{name}_kernels")
        finally:
            settings["CACHE_DIR"] = before


@cache
def compiles() -> bool:
    """Whether numba is installed. It is an extra: detecting events needs none of its kernels."""
    return importlib.util.find_spec("numba") is not None


def cores(threads: int | None = None) -> int:
    """Number of threads: `threads` if given, else the cores that this process may use."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, but is {threads}.")
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
