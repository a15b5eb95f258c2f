"""The context that every script of the graph runs in."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from framekd.config import UserError
from framekd.memory import keep_freed_memory


@contextlib.contextmanager
def job_log(path: str, *, threads: int) -> Iterator[None]:
    """Run a stage: write its output to `path`, and limit numerical libraries to `threads` cores.

    A user's mistake becomes one sentence in the log and exit code 1. Any other error leaves its traceback there.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    keep_freed_memory()
    with (
        Path(path).open("w", buffering=1) as stream,
        _descriptors_to(stream),
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        try:
            yield
        except (UserError, FileNotFoundError) as error:
            print(f"framekd: {error}", file=stream)
            sys.exit(1)
        except SystemExit as error:  # a training that was asked to stop, and saved its state
            print(f"framekd: {error}", file=stream)
            raise
        except BaseException:
            traceback.print_exc(file=stream)
            raise


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
