"""Bootstrap interval of PSDS1: how much it would vary on other clips.

The spread over seeds is another quantity: it says how much PSDS1 varies between training runs. Every resample draws as
many clips as there are, with replacement, and is evaluated exactly, with its own duration and number of events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import cores, kernels
from framekd.metrics.inputs import (
    Events,
    Truth,
    as_numpy,
    check_same_clips,
    check_stamps,
    exact_type,
    frame_stamps,
    prepare_truth,
)
from framekd.metrics.psds_result import false_positive_limit


@dataclass(frozen=True)
class Interval:
    """Percentile interval of PSDS1 over resampled clips. `value` is the PSDS1 of all clips, each once."""

    value: float
    low: float
    high: float
    level: float
    standard_error: float
    resamples: int
    seed: int
    clips: int
    alpha_st: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} ({self.level:.0%} of {self.resamples} resamples of the {self.clips} clips: "
            f"{self.low:.4f} … {self.high:.4f})"
        )


class _Changes:
    """Change points of every class with their clips, down to the lowest score that a resample's curve can reach."""

    def __init__(self, scores: Any, truth: Truth, columns: list[int], stamps: Any, dtc: float, gtc: float) -> None:
        self.truth = truth
        self._scores, self._columns = scores, columns
        first = self._read(truth.clips[0])
        self.stamps = frame_stamps(len(first)) if stamps is None else check_stamps(stamps)
        self.tolerance = dtc, gtc
        self.top = np.empty((len(truth.clips), len(truth.classes)))
        for i, clip in enumerate(truth.clips):
            values = self._read(clip)
            if len(values) + 1 != len(self.stamps):
                raise UserError(f"Clip {clip} has {len(values)} frames, but there are {len(self.stamps)} timestamps.")
            self.top[i] = values.max(axis=0)
            if np.isnan(self.top[i]).any():
                raise UserError(f"The scores of clip {clip} contain NaN.")
        owner = np.repeat(np.arange(len(truth.clips)), np.diff(truth.starts))
        self.without = np.ones(self.top.shape, dtype=bool)
        self.without[owner, truth.class_index] = False

    def _read(self, clip: str) -> np.ndarray:
        values = as_numpy(self._scores[clip])
        return np.ascontiguousarray(values[:, self._columns], dtype=exact_type(values.dtype))

    def collect(self, keep: int) -> None:
        """Fill entries[class] = (score, fp, tp, clip), descending, down to the `keep`-th clip without the class."""
        n_clips, n_classes = self.top.shape
        top = np.where(self.without, self.top, -np.inf)
        bound = np.full(n_classes, -np.inf)
        if keep < n_clips:
            bound = -np.partition(-top, keep, axis=0)[keep]
        self.firm = [np.flatnonzero(top[:, k] > bound[k]).astype(np.int32) for k in range(n_classes)]
        self.all_kept = np.isneginf(bound)
        block, truth = kernels("psds").block, self.truth
        room = len(self.stamps) + 2
        buffers = (
            np.empty((n_classes, room)),
            np.empty((n_classes, room), np.int32),
            np.empty((n_classes, room), np.int32),
        )
        lo, tail = np.full(n_classes, -np.inf), ~self.all_kept
        parts: list[tuple[np.ndarray, ...]] = []
        for i, clip in enumerate(truth.clips):
            values = self._read(clip)[None]
            count = np.zeros(n_classes, dtype=np.int64)
            row = np.array([i])
            block(
                values, values.max(axis=1), values.min(axis=1), row, 0, 0, n_classes,
                truth.starts, truth.class_index, truth.onsets, truth.offsets, self.stamps, *self.tolerance,
                *buffers, count, bound, lo, tail,
            )  # fmt: skip
            filled = np.arange(room) < count[:, None]
            which = np.repeat(np.arange(n_classes, dtype=np.int32), count)
            parts.append((which, *(b[filled] for b in buffers), np.full(len(which), i, np.int32)))
        which, score, fp, tp, clip_of = (np.concatenate(column) for column in zip(*parts))
        order = np.lexsort((-score, which))
        ends = np.searchsorted(which[order], np.arange(n_classes + 1))
        columns = [np.ascontiguousarray(column[order]) for column in (score, fp, tp, clip_of)]
        self.entries = [[column[a:b] for column in columns] for a, b in pairwise(ends)]


def _evaluate(changes: _Changes, weight: np.ndarray, e_max: float, alpha_st: float) -> float | None:
    """PSDS with clips counted `weight` [clips] times. None if the entries do not go down far enough."""
    truth, hits = changes.truth, kernels("psds").weighted_hits
    seconds = float(weight @ truth.durations)
    limit = false_positive_limit(seconds, e_max)
    limit = min(limit, int(weight.sum()) * (len(changes.stamps) // 2 + 1))
    events = np.bincount(
        truth.class_index, weights=np.repeat(weight, np.diff(truth.starts)), minlength=len(truth.classes)
    )
    widths = np.diff(np.append(np.arange(limit + 1) / seconds * 3600, e_max)) / e_max
    best = np.empty((len(truth.classes), limit + 1))
    for k, entries in enumerate(changes.entries):
        enough = hits(*entries, changes.firm[k], weight, limit, best[k])
        if not (enough or changes.all_kept[k]):
            return None
    present = events > 0  # a class without any event in the draw has no rate
    rate = best[present] / events[present, None]
    if alpha_st == 0:
        return float((rate @ widths).mean())
    return float(np.maximum(rate.mean(0) - alpha_st * rate.std(0), 0.0) @ widths)


def bootstrap_psds1(
    scores: Any,
    ground_truth: Events,
    durations: Mapping[str, float],
    classes: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    variance_penalty: bool = False,
    timestamps: Any = None,
    clips: Sequence[str] | None = None,
    dtc: float = 0.7,
    gtc: float = 0.7,
    e_max: float = 100.0,
    threads: int | None = None,
    **options: Any,
) -> Interval:
    """Percentile interval of PSDS1 over `resamples` draws of the clips.

    A class without any event in a draw is left out of that draw's mean.

    Args:
        scores, ground_truth, durations, classes, timestamps, clips, variance_penalty: as for `psds1`. A mapping is read
            two or more times, one clip at a time, so it may read from a file.
        seed: seed of the draws.
        resamples: number of draws.
        level: share of the draws inside the interval, between 0 and 1.
        dtc, gtc, e_max, threads: as for `PSDS`.
        options: arguments of `prepare_truth`.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError("resamples must be at least 1 and level lie between 0 and 1.")
    if not isinstance(scores, Mapping):
        if clips is None:
            raise ValueError("Scores given as one array [clips, frames, classes] need clips=[…].")
        scores = dict(zip(clips, scores))
    check_same_clips(scores=scores, ground_truth=ground_truth)
    truth = prepare_truth(ground_truth, durations, classes, **options)
    columns = [list(classes).index(name) for name in truth.classes]
    changes = _Changes(scores, truth, columns, timestamps, dtc, gtc)
    alpha_st, n = (1.0 if variance_penalty else 0.0), len(truth.clips)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    weights = np.concatenate((np.ones((1, n), dtype=np.int64), draws))
    keep = int(1.2 * false_positive_limit(truth.seconds, e_max)) + 100
    while True:
        changes.collect(keep)
        with ThreadPoolExecutor(cores(threads)) as pool:
            values = list(pool.map(lambda weight: _evaluate(changes, weight, e_max, alpha_st), weights))
        if None not in values:
            break
        keep *= 2
    drawn = np.array(values[1:], dtype=float)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        value=float(values[0]),  # type: ignore[arg-type]
        low=float(low),
        high=float(high),
        level=level,
        standard_error=float(drawn.std()),
        resamples=resamples,
        seed=seed,
        clips=n,
        alpha_st=alpha_st,
    )
