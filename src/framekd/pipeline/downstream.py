"""Downstream tasks: what a checkpoint is worth elsewhere (Table II)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framekd import checkpoints, tasks
from framekd.inference import default_device
from framekd.jobs import DownstreamJob


def transfer(job: DownstreamJob, *, weights: Sequence[str], out: Sequence[str]) -> None:
    """Train and score one task from one checkpoint of each model, in all modes and for all seeds or folds."""
    for (name, options), path, csv in zip(job.options.items(), weights, out, strict=True):
        directory = Path(path).parent
        tasks.run(
            job.task,
            options,
            name,
            directory,
            checkpoint=job.checkpoint,
            modes=job.modes,
            sizes=checkpoints.read_spec(directory)["sizes"],
            out_csv=csv,
            device=default_device(),
        )
