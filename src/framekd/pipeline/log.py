"""The context that every script of the graph runs in."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from framekd.config import UserError
from framekd.files import write_json
from framekd.memory import keep_freed_memory

OTHERS_KEPT = "the others are finished and kept"
"""What a job says at last of which some pieces failed: see :func:`framekd.pipeline.kept.each`."""


@contextlib.contextmanager
def job_log(snakemake: Any) -> Iterator[None]:
    """Run a stage: write its output to its log, and limit numerical libraries to its threads.

    A user's mistake becomes one sentence in the log and exit code 1. Any other error leaves its traceback there. A job
    that ends well leaves its record beside the log (see :func:`record`).

    Args:
        snakemake: the object of this name that Snakemake gives a script: rule, log, threads, params, input, output.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(snakemake.threads)
    keep_freed_memory()
    log, began = Path(snakemake.log[0]), time.time()
    log.with_suffix(".json").unlink(missing_ok=True)  # a log without a record is that of a job that did not end well
    with (
        log.open("w", buffering=1) as stream,
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
        write_json(log.with_suffix(".json"), record(snakemake, began))


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
