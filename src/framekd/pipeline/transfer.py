"""Downstream tasks: what a checkpoint is worth elsewhere (Table II)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framekd import checkpoints, tasks
from framekd.config import Task
from framekd.pipeline.common import device


def transfer(task: str, block: Mapping[str, Any], *, weights: str, checkpoint: str, out: str) -> None:
    """Train and score one task from one checkpoint, in all modes and for all seeds or folds."""
    directory = Path(weights).parent
    spec = checkpoints.read_spec(directory)
    tasks.run(
        task,
        Task.model_validate(block["options"]),
        spec["model"],
        directory,
        checkpoint=checkpoint,
        modes=block["modes"],
        sizes=spec["sizes"],
        out_csv=out,
        device=device(),
    )
