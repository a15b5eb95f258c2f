"""Mean average precision of clip tags, the metric of AudioSet Weak (Step 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._tiles import as_numpy
from framekd.metrics.truth import first_five


@dataclass(frozen=True)
class MAP:
    """value: mean over the classes that occur; per_class: {class: average precision}; left_out: classes that do not."""

    value: float
    per_class: dict[str, float]
    left_out: tuple[str, ...]
    clips: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "per_class": self.per_class,
            "classes_without_truth": list(self.left_out),
            "counts": {"clips": self.clips, "classes": len(self.per_class)},
            "settings": {"metric": "mAP", "average": "macro", "ties": "one threshold"},
        }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision times the step in recall over all distinct thresholds; scores, positive (bool) [clips]."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(order) - 1)
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])


def mean_average_precision(scores: Any, targets: Any, classes: Sequence[str] | None = None) -> MAP:
    """Mean over classes of the average precision (scikit-learn's definition; equal scores are one threshold).

    scores, targets [clips, classes], numpy or torch: any monotone scores, and 0/1 tags. Classes without a positive clip
    are left out and named. Raises UserError for NaN, shapes that differ, targets other than 0 and 1, or no tag at all.
    """
    values, tags = as_numpy(scores), as_numpy(targets)
    if values.ndim != 2 or values.shape != tags.shape:
        raise UserError(f"Scores and targets must both be [clips, classes], but are {values.shape} and {tags.shape}.")
    names = list(classes) if classes is not None else [str(k) for k in range(values.shape[1])]
    if len(names) != values.shape[1]:
        raise UserError(f"Scores have {values.shape[1]} columns, but there are {len(names)} classes.")
    if values.dtype.kind == "f" and np.isnan(values).any():
        clip = int(np.isnan(values).any(1).argmax())
        raise UserError(f"The scores contain NaN, first in clip {clip} (counted from 0).")
    if not ((tags == 0) | (tags == 1)).all():
        raise UserError("Targets must be 0 or 1.")
    positive = tags.astype(bool)
    present = positive.any(0)
    if not present.any():
        raise UserError(f"No clip has a tag of any class: {first_five(names)}.")
    per_class = {names[k]: average_precision(values[:, k], positive[:, k]) for k in np.flatnonzero(present)}
    left_out = tuple(names[k] for k in np.flatnonzero(~present))
    return MAP(float(np.mean(list(per_class.values()))), per_class, left_out, len(values))
