"""Compiled median filter: one selection network, run over many classes at once."""

import numpy as np
from numba import njit

_TILE = 64


def _median_rows(scores, source, pairs, middle, out):
    """Write rank `middle` of each window to out [clips, frames, classes], by compare-exchange of rows of classes.

    source [frames, window]: frames of each window, reflected; pairs [comparators, 2]: the network.
    Returns -1, or the first clip with NaN.
    """
    n_clips, n_frames, n_classes = scores.shape
    window = source.shape[1]
    rows = np.zeros((window, _TILE), scores.dtype)
    for n in range(n_clips):
        nan = 0
        for c0 in range(0, n_classes, _TILE):
            width = min(_TILE, n_classes - c0)
            for t in range(n_frames):
                for w in range(window):
                    frame = scores[n, source[t, w], c0 : c0 + width]
                    row = rows[w]
                    for k in range(np.uint64(width)):  # unsigned: vectorised, without a check for negative indices
                        row[k] = frame[k]
                for p in range(pairs.shape[0]):
                    low, high = rows[pairs[p, 0]], rows[pairs[p, 1]]
                    for k in range(np.uint64(_TILE)):
                        a, b = low[k], high[k]
                        low[k] = a if a < b else b
                        high[k] = b if a < b else a
                frame, row, target = scores[n, t, c0 : c0 + width], rows[middle], out[n, t, c0 : c0 + width]
                for k in range(np.uint64(width)):
                    target[k] = row[k]
                    nan |= frame[k] != frame[k]
        if nan:
            return n
    return -1


_SIGNATURE = "i8({0}[:, :, ::1], i8[:, ::1], i8[:, ::1], i8, {0}[:, :, ::1])"
median_rows = njit(
    [_SIGNATURE.format("f4"), _SIGNATURE.format("f8")], nogil=True, cache=True, error_model="numpy", boundscheck=False
)(_median_rows)
