"""What is minimised: losses on frame labels, clip labels and soft labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from framekd.config import UserError
from framekd.inference import batch_logits
from framekd.losses import bce, distillation


@dataclass(frozen=True)
class Objective:
    """A loss of logits. Micro-batch losses, weighted by their sizes, average to the loss of the batch.

    Attributes:
        kind: "strong": frame labels (Step 3). "weak": clip labels (Step 2). "both": frame labels of the clips that
            have them, plus clip labels of the others (DESED).
        distillation_weight: share of the loss on soft labels.
    """

    kind: Literal["strong", "weak", "both"]
    distillation_weight: float = 0.0

    def __call__(self, frames: Tensor, clips: Tensor, batch: Any, rows: slice) -> Tensor:
        """The mean loss of some clips of a batch.

        Args:
            frames: frame logits [clips, classes, frames].
            clips: clip logits [clips, classes].
            batch: the whole batch, with its labels.
            rows: the clips of the batch that the logits are of.
        """
        if self.kind == "both":
            return self._both(frames, clips, batch, rows)
        logits, labels = (frames, batch.frame_labels) if self.kind == "strong" else (clips, batch.clip_labels)
        if labels is None:
            raise UserError(f"the objective {self.kind!r} needs labels that the batches do not have")
        if self.distillation_weight == 0:
            return bce(logits, labels[rows])
        if batch.soft_labels is None:
            raise UserError(
                f"distillation_weight is {self.distillation_weight:g}, but the batches have no soft labels; "
                "give the loader an ensemble or write distillation_weight: 0.0"
            )
        share = None if batch.soft_share is None else batch.soft_share[rows]
        return distillation(logits, labels[rows], batch.soft_labels[rows], weight=self.distillation_weight, share=share)

    def _both(self, frames: Tensor, clips: Tensor, batch: Any, rows: slice) -> Tensor:
        strongly = batch.has_frame_labels
        here = strongly[rows]
        part = len(here) / len(strongly)
        on_frames = bce(frames, batch.frame_labels[rows], clips=here, count=strongly.sum() * part)
        return on_frames + bce(clips, batch.clip_labels[rows], clips=~here, count=(~strongly).sum() * part)


@torch.no_grad()
def validation_loss(
    model: Any, batches: Iterable[Any], *, objective: Objective, device: torch.device
) -> dict[str, float]:
    """Mean loss over `batches` in evaluation mode, each clip with the same weight, as ``{"val/loss": …}``.

    Raises:
        UserError: there are no clips.
    """
    training = model.training
    total, clips = 0.0, 0
    for batch, [(frames, clip_logits)] in batch_logits([model], batches, device=device):
        size = len(batch)
        total += float(objective(frames, clip_logits, batch.to(device), slice(0, size))) * size
        clips += size
    model.train(training)
    if not clips:
        raise UserError("there are no validation clips; write validation_share: 0.05")
    return {"val/loss": total / clips}
