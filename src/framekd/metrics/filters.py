"""Median filter over time, equal to scipy's, for numpy and torch on CPU and GPU."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._compile import compiles, cores, kernels
from framekd.units import FRAME_SECONDS

FEW = 1 << 18
"""Scores for which numba is not loaded, since that takes 1 s; torch filters as many (two windows of 10 s) in 30 ms."""


def window_frames(seconds: float, frame_seconds: float = FRAME_SECONDS) -> int:
    """Frames of a median window given in seconds: 0.48 s are 12 frames of 40 ms (the paper), 0.36 s are 9."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"A median window must last 0 s (no filter) or longer, but is {seconds} s.")
    return max(1, round(seconds / frame_seconds))


@lru_cache(maxsize=32)
def selection_network(window: int) -> np.ndarray:
    """Compare-exchanges [comparators, 2] that put rank window // 2 (from 0) at index window // 2.

    Batcher's odd-even merge sort, without the exchanges on which that output does not depend.
    """
    pairs: list[tuple[int, int]] = []
    size = 1
    while size < window:
        step = size
        while step >= 1:
            for start in range(step % size, window - step, 2 * step):
                for i in range(start, min(start + step, window - step)):
                    if i // (2 * size) == (i + step) // (2 * size):
                        pairs.append((i, i + step))
            step //= 2
        size *= 2
    needed, kept = {window // 2}, []
    for i, j in reversed(pairs):
        if i in needed or j in needed:
            needed |= {i, j}
            kept.append((i, j))
    return np.array(kept[::-1], dtype=np.int64).reshape(-1, 2)


@lru_cache(maxsize=32)
def window_source(n_frames: int, window: int) -> np.ndarray:
    """Frames of each window, from t - window // 2: [frames, window], reflected at the edges (c b a | a b c | c b a)."""
    index = np.arange(n_frames)[:, None] + np.arange(window)[None, :] - window // 2
    index %= 2 * n_frames
    return np.ascontiguousarray(np.where(index < n_frames, index, 2 * n_frames - 1 - index), dtype=np.int64)


def median_filter(
    scores: Any,
    seconds: float = 0.48,
    *,
    frames: int | None = None,
    frame_seconds: float = FRAME_SECONDS,
    threads: int | None = None,
) -> Any:
    """Median over time of every class, equal to scipy.ndimage.median_filter(mode="reflect").

    For an even window of m frames it is the upper median of frames t - m/2 … t + m/2 - 1, so a block of 12 frames
    becomes 13 frames long. It picks an element and never averages, so logits and probabilities give the same ranks.

    Args:
        scores: [..., frames, classes], numpy or torch on any device.
        seconds: length of the window; the paper uses 0.48 s (12 frames of 40 ms).
        frames: length of the window in frames, instead of `seconds`.
        frame_seconds: length of a frame.
        threads: number of threads; None: all cores.
    Returns:
        The filtered scores: same shape, type and device.
    Raises:
        UserError: a score is NaN, or there are fewer than two dimensions.
    """
    window = window_frames(seconds, frame_seconds) if frames is None else int(frames)
    if window < 1:
        raise ValueError(f"A median window needs at least one frame, but has {window}.")
    if scores.ndim < 2:
        raise UserError(f"Scores must have the shape [..., frames, classes], but have {tuple(scores.shape)}.")
    if not hasattr(scores, "detach"):
        return _filter_numpy(np.asarray(scores), window, cores(threads))
    if scores.device.type != "cpu":
        return _filter_tensor(scores, window)
    import torch

    if scores.dtype in (torch.float32, torch.float64, torch.float16):
        return torch.from_numpy(_filter_numpy(scores.detach().numpy(), window, cores(threads)))
    return _filter_tensor(scores, window)


def _filter_numpy(scores: np.ndarray, window: int, threads: int) -> np.ndarray:
    work = np.float64 if scores.dtype.itemsize > 4 or scores.dtype.kind in "iu" else np.float32
    blocks = np.ascontiguousarray(scores, dtype=work).reshape(-1, *scores.shape[-2:])
    out = np.empty_like(blocks)
    if not out.size:
        return out.reshape(scores.shape).astype(scores.dtype)
    if not compiles() or (out.size <= FEW and "numba" not in sys.modules):
        import torch

        return _filter_tensor(torch.from_numpy(blocks), window).numpy().reshape(scores.shape).astype(scores.dtype)
    source, pairs = window_source(scores.shape[-2], window), selection_network(window)
    run = kernels("filter").median_rows
    parts = [p for p in np.array_split(np.arange(len(blocks)), min(threads, len(blocks))) if len(p)]

    def part(p: np.ndarray) -> int:
        clip = run(blocks[p[0] : p[-1] + 1], source, pairs, window // 2, out[p[0] : p[-1] + 1])
        return -1 if clip < 0 else int(p[0]) + clip

    if len(parts) == 1:
        bad = [part(parts[0])]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            bad = list(pool.map(part, parts))
    if max(bad) >= 0:
        raise UserError(f"The scores to be filtered contain NaN (clip {min(b for b in bad if b >= 0)} of the array).")
    return out.reshape(scores.shape).astype(scores.dtype, copy=False)


def _filter_tensor(scores: Any, window: int) -> Any:
    """The same network on whole tensors, on their device, 64 clips at a time to bound the memory."""
    import torch

    blocks = scores.detach().reshape(-1, *scores.shape[-2:])
    source = torch.from_numpy(window_source(scores.shape[-2], window)).to(blocks.device)
    out = torch.empty_like(blocks)
    for i in range(0, len(blocks), 64):
        rows = [blocks[i : i + 64].index_select(1, source[:, w]) for w in range(window)]
        for a, b in selection_network(window).tolist():
            rows[a], rows[b] = torch.minimum(rows[a], rows[b]), torch.maximum(rows[a], rows[b])
        out[i : i + 64] = rows[window // 2]
    if torch.isnan(blocks).any():
        clip = int(torch.isnan(blocks).flatten(1).any(1).nonzero()[0])
        raise UserError(f"The scores to be filtered contain NaN (clip {clip} of the array).")
    return out.reshape(scores.shape)
