"""Losses: binary cross-entropy on frames or clips, and its mix with an ensemble's soft labels (Sec. 3.2).

All losses take logits and are means over all elements, so every class and every frame has the same weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def bce(
    logits: Float[Tensor, " batch *shape"],
    labels: Float[Tensor, " batch *shape"],
    *,
    clips: Bool[Tensor, " batch"] | None = None,
    count: Tensor | None = None,
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of logits against labels.

    Args:
        logits: [batch, ...].
        labels: as logits, 0..1.
        clips: [batch] bool, the clips to average over; all unless given. With none, the loss is 0 and has gradient 0.
        count: divisor of the sum over `clips`; their number unless given. For a micro-batch pass batch_count *
            len(part) / len(batch), so that micro-batch losses average to the batch loss.
    Returns:
        Scalar loss.
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

    Args:
        logits: [batch, classes] or [batch, classes, frames].
        labels: as logits, 0..1.
        soft: as logits, the ensemble's probabilities; NaN for a class or clip that it lacks. There the soft term is 0
            and the label term keeps its weight, as EfficientAT treats clips without a teacher. Of a mix of clips, the
            sum over those that have soft labels, each multiplied by its part of the mix.
        weight: share of the soft labels, 0..1.
        share: [batch], the part of each mix that has soft labels; None is all of it.
    Returns:
        Scalar loss.
    """
    # Binary cross-entropy is linear in its target, so one pass over the logits is enough for both terms.
    known = ~torch.isnan(soft)
    target = (1.0 - weight) * labels + torch.where(known, weight * soft, 0.0)
    present = known.to(logits.dtype)
    if share is not None:
        present = present * share.to(logits.dtype).view(-1, *[1] * (logits.ndim - 1))
    # With v the total weight of an element: -[t log p + (v - t) log (1 - p)] = v softplus(z) - t z.
    total = (1.0 - weight) + weight * present
    return (total * F.softplus(logits) - target * logits).mean()
