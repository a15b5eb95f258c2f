"""The stages of the graph, one function a rule; :func:`job` is what every one of them runs in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from framekd.config import UserError
from framekd.memory import keep_freed_memory


@contextlib.contextmanager
def job(log: str, *, threads: int) -> Iterator[None]:
    """Run a stage: its words go to `log`, libraries keep to `threads` cores, a user's mistake is one sentence."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(threads)
    keep_freed_memory()
    with (
        Path(log).open("w", buffering=1) as stream,
        _into(stream),
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        try:
            yield
        except (UserError, FileNotFoundError) as error:
            print(f"framekd: {error}", file=stream)
            sys.exit(1)
        except SystemExit as error:  # a training that was told to stop, and saved its state
            print(f"framekd: {error}", file=stream)
            raise
        except BaseException:
            import traceback

            traceback.print_exc(file=stream)
            raise


@contextlib.contextmanager
def _into(stream: TextIO) -> Iterator[None]:
    """Send what other processes and libraries in C say to `stream` too: they know the descriptors alone."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    try:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        yield
    finally:
        for number, saved in zip((1, 2), before):
            os.dup2(saved, number)
            os.close(saved)
