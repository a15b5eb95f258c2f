"""Keeping freed memory in the process: for small models on a CPU, new pages take as long as the arithmetic."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of mallopt, in <malloc.h>


def keep_freed_memory() -> bool:
    """Make glibc reuse freed blocks instead of returning them to the system; False where that is not possible.

    Each step frees and allocates the same tensors of some megabytes. By default each is new memory, which the system
    has to clear first. With this the process keeps its peak memory.
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
