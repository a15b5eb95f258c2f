"""Models by name: the authors' published checkpoints, checkpoint folders, and runs of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from framekd.checkpoints import load_checkpoint
from framekd.models import FrameModel


def open_model(name: str | Path, *, device: torch.device | str = "cpu") -> tuple[FrameModel, dict[str, Any]]:
    """Open a model.

    Args:
        name: a checkpoint folder (model.safetensors and spec.json).
        device: where the model is placed.
    Returns:
        The model in evaluation mode, and its specification (`classes` are the frame head's outputs in order).
    Raises:
        UserError: there is no such model, or its files are damaged.
    """
    model, spec = load_checkpoint(name, device=device)
    return model.eval(), spec
