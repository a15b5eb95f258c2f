"""Where trainings are shown while they run."""

from __future__ import annotations

from typing import Literal

from framekd.config.base import Block, field


class Tracking(Block):
    """Where Step 2 and Step 3 are shown while they train, beside history.jsonl; a change here reruns nothing."""

    tensorboard: bool = field(False, "TensorBoard event files in a folder `tensorboard` beside each training's output")
    wandb: str | None = field(None, "project of Weights & Biases; null is none")
    wandb_mode: Literal["online", "offline"] = field(
        "online", "offline keeps the runs beside the output, for `wandb sync` later, and needs no network"
    )
