"""Score curves in, change points out: the part of the PSDS that is done for each tile of neighbouring classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import kernels
from framekd.metrics.truth import Truth

FRAME_SECONDS = 0.04
CLIP_SECONDS = 10.0
_ROOM = 2048  # change points of a class kept before they are summed and pruned for the first time


def frame_stamps(n_frames: int) -> np.ndarray:
    """[frames + 1] boundaries of 40-ms frames up to 10 s (seconds)."""
    if n_frames > round(CLIP_SECONDS / FRAME_SECONDS):
        raise UserError(f"{n_frames} frames of 40 ms are more than 10 s: give `timestamps` [frames + 1] in seconds.")
    return np.minimum(np.arange(n_frames + 1) * FRAME_SECONDS, CLIP_SECONDS)


def check_stamps(timestamps: Any) -> np.ndarray:
    """[frames + 1] strictly increasing, finite seconds, as float64."""
    stamps = np.ascontiguousarray(timestamps, dtype=np.float64)
    if stamps.ndim != 1 or len(stamps) < 2 or not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        raise UserError("timestamps must be one row of [frames + 1] finite, strictly increasing seconds.")
    return stamps


def as_numpy(scores: Any) -> np.ndarray:
    """numpy array of a tensor (any device, bfloat16 too) or array, without copying where possible."""
    if hasattr(scores, "detach"):
        scores = scores.detach()
        if str(scores.dtype) == "torch.bfloat16":
            scores = scores.float()
        scores = scores.cpu().numpy()
    return np.asarray(scores)


def exact_type(dtype: np.dtype) -> type:
    """float32 where that loses nothing (float16, small integers), float64 otherwise."""
    small = dtype.kind in "fiub" and dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.float32 if small else np.float64


def false_positive_limit(seconds: float, e_max: float) -> int:
    """Most false positives of a class that stay on the curve, by the same float arithmetic as the curve's cut."""
    limit = int(e_max * seconds / 3600) + 2
    while limit > 0 and limit / seconds * 3600 > e_max:
        limit -= 1
    return limit


class Tile:
    """Change points of a few neighbouring classes; owned by one thread at a time."""

    def __init__(self, c0: int, c1: int, limit: int, n_frames: int) -> None:
        self.c0, self.c1, self.limit = c0, c1, limit
        width, room = c1 - c0, _ROOM + 2 * n_frames
        self.score = np.empty((width, room))
        self.fp = np.empty((width, room), dtype=np.int32)
        self.tp = np.empty((width, room), dtype=np.int32)
        self.count = np.zeros(width, dtype=np.int64)
        self.hi = np.full(width, -np.inf)
        self.lo = np.full(width, -np.inf)
        self.tail = np.zeros(width, dtype=np.bool_)

    def compact(self) -> None:
        """Sort, sum and prune every class's change points; double the room if they still fill half of it."""
        compact = kernels("psds").compact
        most = int(self.count.max())
        out = np.empty(most), np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32)
        for k, n in enumerate(self.count):
            order = np.argsort(self.score[k, :n])
            m, self.hi[k], self.lo[k], self.tail[k] = compact(
                order, self.score[k, :n], self.fp[k, :n], self.tp[k, :n], self.limit, *out
            )
            self.score[k, :m], self.fp[k, :m], self.tp[k, :m] = out[0][:m], out[1][:m], out[2][:m]
            self.count[k] = m
        if 2 * self.count.max() > self.score.shape[1]:
            self.score = np.concatenate((self.score, np.empty_like(self.score)), axis=1)
            self.fp = np.concatenate((self.fp, np.empty_like(self.fp)), axis=1)
            self.tp = np.concatenate((self.tp, np.empty_like(self.tp)), axis=1)

    def add(
        self, scores: tuple[np.ndarray, ...], rows: np.ndarray, truth: Truth, stamps: np.ndarray, tolerance: Any
    ) -> None:
        """Changes of a block of clips. scores: the curves, their highest and their lowest scores."""
        done, block = 0, kernels("psds").block
        while done < len(rows):
            done = block(
                *scores, rows, done, self.c0, self.c1,
                truth.starts, truth.class_index, truth.onsets, truth.offsets, stamps, *tolerance,
                self.score, self.fp, self.tp, self.count, self.hi, self.lo, self.tail,
            )  # fmt: skip
            if done < len(rows):
                self.compact()
