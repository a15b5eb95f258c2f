"""Metrics of ranked scores: mean average precision of clips, and area under the ROC curve of one-second segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import cores
from framekd.metrics.inputs import (
    Events,
    Truth,
    as_numpy,
    check_same_clips,
    check_stamps,
    exact_type,
    first_five,
    frame_stamps,
    portions,
    prepare_truth,
)


@dataclass(frozen=True)
class MAP:
    """Mean average precision.

    Attributes:
        value: mean over the classes that occur.
        per_class: {class: average precision}.
        left_out: classes that do not occur.
    """

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
    """Sum of precision times the step in recall over all distinct thresholds. scores, positive (bool): [clips]."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(order) - 1)
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])


def mean_average_precision(scores: Any, targets: Any, classes: Sequence[str] | None = None) -> MAP:
    """Mean over classes of the average precision of clip tags, the metric of AudioSet Weak (Step 2).

    Scikit-learn's definition: equal scores are one threshold. Classes without a positive clip are left out and named.

    Args:
        scores: [clips, classes], any monotone scores; numpy or torch.
        targets: [clips, classes] of 0 and 1.
        classes: names of the columns; None: their numbers.
    Raises:
        UserError: a score is NaN, shapes differ, targets are not 0 and 1, or no clip has a tag.
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


@dataclass(frozen=True)
class AUROC:
    """Partial area under the ROC curve, divided by max_fpr so that a perfect system has 1.

    Attributes:
        value: mean over classes.
        per_class: {class: area}.
    """

    value: float
    per_class: dict[str, float]
    settings: dict[str, Any]
    counts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "per_class": self.per_class,
            "settings": self.settings,
            "counts": self.counts,
        }


def partial_auc(scores: np.ndarray, positive: np.ndarray, max_fpr: float | None) -> float:
    """Area under the ROC staircase up to max_fpr, divided by max_fpr. NaN without positives or negatives."""
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(order) - 1)
    tp = np.concatenate(([0], np.cumsum(positive[order])[ends]))
    fp = np.concatenate(([0], ends + 1)) - tp
    if fp[-1] == 0 or tp[-1] == 0:
        return float("nan")
    top = 1.0 if max_fpr is None else max_fpr
    rate = np.minimum(np.append(fp / fp[-1], top), top)
    return float((tp / tp[-1]) @ np.maximum(np.diff(rate), 0) / top)


class SegmentAUROC:
    """Area under the ROC curve of segments, for scores that arrive in portions (sed_scores_eval's segment_based.auroc).

    A segment is positive if an event touches it. Its score is the highest of the frames that touch it. The number of
    segments follows from the clip's duration.

    Args:
        classes, ground_truth, durations, timestamps, threads: as for `PSDS`.
        segment_seconds: length of a segment.
        max_fpr: highest false-positive rate; None: 1.
        options: arguments of `prepare_truth`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ground_truth: Events,
        durations: Mapping[str, float],
        *,
        timestamps: Any = None,
        segment_seconds: float = 1.0,
        max_fpr: float | None = 0.1,
        threads: int | None = None,
        **options: Any,
    ) -> None:
        if segment_seconds <= 0 or not (max_fpr is None or 0 < max_fpr <= 1):
            raise ValueError("segment_seconds must be positive and max_fpr lie between 0 and 1.")
        self.truth: Truth = prepare_truth(ground_truth, durations, classes, **options)
        self._given = list(classes)
        self._columns = [self._given.index(name) for name in self.truth.classes]
        self._stamps = None if timestamps is None else check_stamps(timestamps)
        self._known = set(durations)
        self._segment, self._max_fpr, self._threads = segment_seconds, max_fpr, cores(threads)
        self._scores: dict[int, np.ndarray] = {}

    def add(self, clips: Sequence[str], scores: Any) -> None:
        """Add scores [clips, frames, classes], numpy or torch. Raises UserError for NaN and for unknown clips."""
        values = as_numpy(scores)
        if values.ndim != 3 or len(clips) != len(values) or values.shape[2] != len(self._given):
            raise UserError(
                f"Scores of {len(clips)} clips must be [clips, frames, {len(self._given)} classes], "
                f"but are {values.shape}."
            )
        strange = [clip for clip in clips if clip not in self._known]
        if strange:
            raise UserError(f"Scores came for {len(strange)} clips without ground truth: {first_five(strange)}.")
        if self._stamps is None:
            self._stamps = frame_stamps(values.shape[1])
        if len(self._stamps) != values.shape[1] + 1:
            raise UserError(f"{values.shape[1]} frames need {values.shape[1] + 1} timestamps, not {len(self._stamps)}.")
        for clip, row in zip(clips, values):
            if clip in self.truth.row:
                self._scores[self.truth.row[clip]] = self._maxima(row, clip)

    def _edges(self, duration: float) -> np.ndarray:
        return np.round(np.arange(int(np.ceil(duration / self._segment)) + 1) * self._segment, 6)

    def _maxima(self, scores: np.ndarray, clip: str) -> np.ndarray:
        """Highest score of the frames that touch each segment: [segments, classes]; 0 for a segment without frames."""
        assert self._stamps is not None
        values: np.ndarray = scores[:, self._columns].astype(exact_type(scores.dtype), copy=False)
        if np.isnan(values).any():
            raise UserError(f"The scores of clip {clip} contain NaN.")
        stamps = np.round(self._stamps, 6)
        edges = self._edges(self.truth.durations[self.truth.row[clip]])
        first = np.maximum(np.searchsorted(stamps, edges[:-1], side="right") - 1, 0)
        last = np.minimum(np.searchsorted(stamps, edges[1:], side="left"), len(stamps) - 1)
        out = np.zeros((len(edges) - 1, values.shape[1]), dtype=values.dtype)
        for i, (a, b) in enumerate(zip(first, last)):
            if b > a:
                out[i] = values[a:b].max(axis=0)
        return out

    def _targets(self, row: int) -> np.ndarray:
        """Whether an event of the class touches the segment: [segments, classes] bool."""
        edges = self._edges(self.truth.durations[row])
        targets = np.zeros((len(edges) - 1, len(self.truth.classes)), dtype=bool)
        for e in range(self.truth.starts[row], self.truth.starts[row + 1]):
            touched = (edges[:-1] < self.truth.offsets[e]) & (edges[1:] > self.truth.onsets[e])
            targets[:, self.truth.class_index[e]] |= touched
        return targets

    def result(self) -> AUROC:
        """Return the areas. Raises UserError if clips with ground truth have no scores yet."""
        missing = [clip for clip, row in self.truth.row.items() if row not in self._scores]
        if missing:
            raise UserError(f"{len(missing)} clips with ground truth have no scores: {first_five(missing)}.")
        rows = range(len(self.truth.clips))
        scores = np.concatenate([self._scores[row] for row in rows]).T.copy()
        targets = np.concatenate([self._targets(row) for row in rows]).T.copy()
        with ThreadPoolExecutor(self._threads) as pool:
            areas = list(pool.map(lambda k: partial_auc(scores[k], targets[k], self._max_fpr), range(len(scores))))
        settings = {"metric": "segment AUROC", "segment_seconds": self._segment, "max_fpr": self._max_fpr}
        counts = self.truth.counts() | {"segments": scores.shape[1]}
        return AUROC(float(np.mean(areas)), dict(zip(self.truth.classes, areas)), settings, counts)


def segment_auroc(
    scores: Any,
    ground_truth: Events,
    durations: Mapping[str, float],
    classes: Sequence[str],
    *,
    clips: Sequence[str] | None = None,
    **options: Any,
) -> AUROC:
    """Partial AUROC over 1-s segments up to a false-positive rate of 0.1, mean over classes.

    Arguments as for `psds1`; options: those of `SegmentAUROC`.
    """
    names, parts = portions(scores, clips, 32)
    check_same_clips(scores=names, ground_truth=ground_truth)
    evaluation = SegmentAUROC(classes, ground_truth, durations, **options)
    for some, values in parts:
        evaluation.add(some, values)
    return evaluation.result()
