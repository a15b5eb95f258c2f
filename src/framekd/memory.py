"""Memory of a CPU training stays with the process: fresh pages cost small models as much as their arithmetic."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt, in <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks instead of giving them back; whether it did (False on other systems).

    A step frees and allocates the same tensors of some megabytes over and over, and by default each of them is new
    memory that the system has to clear first. The process keeps its peak instead.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # glibc refuses thresholds above half of its heap's largest size, 32 MB on most builds.
    large = any(mallopt(MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25))
    return bool(large and mallopt(TRIM_THRESHOLD, (1 << 31) - 1) and mallopt(TOP_PAD, 1 << 26))
