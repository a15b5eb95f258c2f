"""Events on the frame grid: merging, targets, active time and the weights of balanced sampling (Sec. 3.1, 3.3).

A frame is 40 ms (25 per second). An event covers the frames floor(25 onset) to ceil(25 offset) - 1, so that an event of
1 ms marks one frame.
"""

from __future__ import annotations

import numpy as np

from framekd.units import CLIP_FRAMES, FRAME_RATE

_NOISE = 1e-6  # frames, for rounding errors: 0.28 s is exactly frame 7, but 0.28 * 25 is 7.000000000000001


def merge_events(
    clip: np.ndarray, label: np.ndarray, onset: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Merge overlapping or touching events of one class in one clip, as columns; sorted by (clip, label, onset).

    Events are merged while a previous offset is not before the next onset.
    """
    if len(clip) == 0:
        return clip, label, onset, offset
    order = np.lexsort((offset, onset, label, clip))
    clip, label, onset, offset = clip[order], label[order], onset[order], offset[order]
    fresh = np.ones(len(clip), bool)
    fresh[1:] = (clip[1:] != clip[:-1]) | (label[1:] != label[:-1])
    # Latest offset so far in each group: a running maximum of ranks, since adding a shift to floats would round them.
    values, rank = np.unique(offset, return_inverse=True)
    lift = (np.cumsum(fresh) - 1) * len(values)
    latest = values[np.maximum.accumulate(rank.reshape(-1) + lift) - lift]
    fresh[1:] |= latest[:-1] < onset[1:]
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(clip)) - 1
    return clip[first], label[first], onset[first], latest[last]


def frame_span(
    onset: np.ndarray, offset: np.ndarray, *, n_frames: int | None = CLIP_FRAMES, frame_rate: float = FRAME_RATE
) -> tuple[np.ndarray, np.ndarray]:
    """Half-open frame spans (int32) of events in seconds, clipped to 0 … `n_frames` (None: no upper limit)."""
    begin = np.floor(np.asarray(onset, np.float64) * frame_rate + _NOISE)
    end = np.ceil(np.asarray(offset, np.float64) * frame_rate - _NOISE)
    top = np.inf if n_frames is None else n_frames
    return np.clip(begin, 0, top).astype(np.int32), np.clip(end, 0, top).astype(np.int32)


def active_runs(active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of true values over time: columns (class, begin, end) of half-open frame spans.

    Args:
        active: [frames, classes] bool.
    Returns:
        Three int64 [runs] arrays, sorted by class, then by begin.
    """
    padded = np.zeros((active.shape[1], len(active) + 2), np.int8)
    padded[:, 1:-1] = active.T
    change = np.diff(padded, axis=1)
    label, begin = np.nonzero(change == 1)
    return label, begin, np.nonzero(change == -1)[1]


def frame_targets(
    label: np.ndarray, begin: np.ndarray, end: np.ndarray, n_classes: int, n_frames: int = CLIP_FRAMES
) -> np.ndarray:
    """Targets of one clip from its frame spans: float32 [classes, frames], 1 where the class is active."""
    targets = np.zeros((n_classes, n_frames), np.float32)
    for row, a, b in zip(label.tolist(), begin.tolist(), end.tolist()):
        targets[row, a:b] = 1
    return targets


def active_frames(
    clip: np.ndarray, label: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Active frames per clip and class as sorted columns (clip, label, frames); overlaps count once."""
    clip, label, begin, end = merge_events(clip, label, begin, end)
    if len(clip) == 0:
        return clip, label, np.zeros(0, np.int64)
    fresh = np.ones(len(clip), bool)
    fresh[1:] = (clip[1:] != clip[:-1]) | (label[1:] != label[:-1])
    first = np.flatnonzero(fresh)
    return clip[first], label[first], np.add.reduceat(np.maximum(end - begin, 0).astype(np.int64), first)


def active_seconds(label: np.ndarray, onset: np.ndarray, offset: np.ndarray, n_classes: int) -> np.ndarray:
    """Seconds of (merged) events per class: float64 [classes]."""
    return np.bincount(label, weights=offset - onset, minlength=n_classes)


def class_weights(totals: np.ndarray, *, offset: float = 30.0, scale: float = 1000.0) -> np.ndarray:
    """Weight of a class with `totals` active frames (or clips) in the training set: scale / (offset + totals)."""
    return scale / (offset + np.asarray(totals, np.float64))


def balanced_weights(
    clip: np.ndarray,
    label: np.ndarray,
    amount: np.ndarray,
    n_clips: int,
    n_classes: int,
    *,
    offset: float = 30.0,
    scale: float = 1000.0,
) -> np.ndarray:
    """Sampling weight of every clip: sum over its classes of amount x scale / (offset + total of the class).

    Args:
        clip, label, amount: columns; amount is active frames (strong: PretrainedSED's sampler, offset 30) or 1 per
            label (weak: EfficientAT's, offset 100).
    Returns:
        [clips] float64, 0 for a clip without any class.
    """
    totals = np.bincount(label, weights=amount, minlength=n_classes)
    weight = class_weights(totals, offset=offset, scale=scale)
    return np.bincount(clip, weights=amount * weight[label], minlength=n_clips)
