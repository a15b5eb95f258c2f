"""What is minimised: a name from the configuration, or a function of one's own with the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from framekd.config import Recipe, UserError
from framekd.losses import bce, distillation

Objective = Callable[[Tensor, Tensor, Any, slice, Recipe], Tensor]
"""``objective(frame_logits, clip_logits, batch, rows, recipe)``: a loss of the clips ``rows`` of `batch`, as the mean
that they would have alone; parts' means, weighted by their sizes, then average to that of the batch."""


def strong(frames: Tensor, clips: Tensor, batch: Any, rows: slice, recipe: Recipe) -> Tensor:
    """Frame labels, mixed with the ensemble's soft labels when the recipe distils (Step 3)."""
    return _mixed(frames, batch.frame_labels, batch, rows, recipe)


def weak(frames: Tensor, clips: Tensor, batch: Any, rows: slice, recipe: Recipe) -> Tensor:
    """Clip labels, mixed with soft labels when the recipe distils (Step 2)."""
    return _mixed(clips, batch.clip_labels, batch, rows, recipe)


def both(frames: Tensor, clips: Tensor, batch: Any, rows: slice, recipe: Recipe) -> Tensor:
    """Frame labels of the clips that have them plus clip labels of the others (DESED)."""
    strongly = batch.has_frame_labels
    here = strongly[rows]
    part = len(here) / len(strongly)
    return bce(frames, batch.frame_labels[rows], clips=here, count=strongly.sum() * part) + bce(
        clips, batch.clip_labels[rows], clips=~here, count=(~strongly).sum() * part
    )


OBJECTIVES: dict[str, Objective] = {"strong": strong, "weak": weak, "both": both}


def resolve(objective: str | Objective) -> Objective:
    """The objective of that name, or the function itself."""
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise UserError(f"there is no objective {objective!r}; the objectives are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]


def _mixed(logits: Tensor, labels: Tensor | None, batch: Any, rows: slice, recipe: Recipe) -> Tensor:
    if labels is None:
        raise UserError("the objective needs labels that the batches do not carry")
    if recipe.distillation_weight == 0:
        return bce(logits, labels[rows])
    if batch.soft_labels is None:
        raise UserError(
            f"distillation_weight is {recipe.distillation_weight:g}, but the batches carry no soft labels; "
            "give the loader an ensemble or write distillation_weight: 0.0"
        )
    return distillation(logits, labels[rows], batch.soft_labels[rows], weight=recipe.distillation_weight)


@torch.no_grad()
def validation_loss(
    model: Any, batches: Iterable[Any], recipe: Recipe, *, objective: str | Objective, device: torch.device | str
) -> dict[str, float]:
    """Mean loss over `batches` in evaluation mode, as ``{"val/loss": …}``; clips weigh alike."""
    compute = resolve(objective)
    training = model.training
    model.eval()
    total, clips = 0.0, 0
    for host in batches:
        batch = host.to(device)
        size = len(batch.waveform)
        frames, weak_logits = default_forward(model, model.frontend(batch.waveform), None)
        total += float(compute(frames.float(), weak_logits.float(), batch, slice(0, size), recipe)) * size
        clips += size
    model.train(training)
    if not clips:
        raise UserError("there are no validation clips; write validation_share: 0.05")
    return {"val/loss": total / clips}


def default_forward(model: Any, mel: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Logits of any model, whatever its head gives by itself."""
    if getattr(model, "head_outputs", "logits") == "probabilities":
        return model(mel, generator=generator, outputs="logits")
    return model(mel, generator=generator)
