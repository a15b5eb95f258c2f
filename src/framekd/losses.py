"""The losses: binary cross-entropy on frames or clips, and its mix with an ensemble's soft labels (Sec. 3.2).

Binary cross-entropy is linear in its target, so that ``w BCE(z, s) + (1 - w) BCE(z, y) = BCE(z, w s + (1 - w) y)``: the
mix costs one pass over the logits instead of two. All losses take logits and are means over every element, so that
classes and frames weigh alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def bce(
    logits: Float[Tensor, batch * shape],
    labels: Float[Tensor, batch * shape],
    *,
    clips: Bool[Tensor, " batch"] | None = None,
    count: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of logits against labels in 0..1, the mean over all elements.

    With `clips`, the mean over those clips alone (0, with a gradient of 0, when there are none). `count` replaces their
    number: of a part of a batch, the share of the whole batch's that makes the parts' means average to the batch's.
    """
    if clips is None:
        return F.binary_cross_entropy_with_logits(logits, labels)
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").flatten(1).mean(dim=1)
    count = clips.sum().clamp(min=1) if count is None else torch.where(count > 0, count, 1)
    return torch.where(clips, each, 0.0).sum() / count


def distillation(
    logits: Float[Tensor, "batch classes *frames"],
    labels: Float[Tensor, "batch classes *frames"],
    soft: Float[Tensor, "batch classes *frames"],
    *,
    weight: float,
    share: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """``weight * BCE(logits, soft) + (1 - weight) * BCE(logits, labels)``, means over all elements.

    Where there are no soft labels, the soft term is 0 and the label term keeps its weight: EfficientAT's rule for clips
    without a teacher.

    Args:
        logits: of frames or clips.
        labels: 0 … 1.
        soft: the ensemble's probabilities; NaN where it has none, such as a class that it lacks. Of a mix of clips the
            sum over those that have soft labels, each times its part of the mix.
        weight: share of the loss on soft labels.
        share: the part of each mix that has soft labels; None is all of it.
    """
    known = ~torch.isnan(soft)
    target = (1.0 - weight) * labels + torch.where(known, weight * soft, 0.0)
    present = known.to(logits.dtype)
    if share is not None:
        present = present * share.to(logits.dtype).view(-1, *[1] * (logits.ndim - 1))
    # -[t log p + (v - t) log (1 - p)] with v the weight that an element has in all: v softplus(z) - t z.
    total = (1.0 - weight) + weight * present
    return (total * F.softplus(logits) - target * logits).mean()
