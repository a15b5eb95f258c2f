"""Compiled part of the bootstrap: the curve of one class when every clip counts as often as it was drawn."""

from numba import njit


@njit("b1(f8[::1], i4[::1], i4[::1], i4[::1], i4[::1], i8[::1], i8, f8[::1])", nogil=True, cache=True)
def weighted_hits(score, fp, tp, clip, firm, weight, limit, best):
    """best[f]: most detected events with at most f false positives, f = 0 … limit, with weighted clips.

    Entries (score, fp, tp, clip) in descending order of score; firm: clips without the class that have a detection at
    every threshold below the entries. Returns whether those thresholds are off the curve, that is, the entries suffice.
    """
    best[: limit + 1] = 0.0
    total_fp, total_tp = 0, 0
    i, n = 0, score.shape[0]
    while i < n:
        value = score[i]
        while i < n and score[i] == value:
            total_fp += weight[clip[i]] * fp[i]
            total_tp += weight[clip[i]] * tp[i]
            i += 1
        if total_fp <= limit and total_tp > best[total_fp]:
            best[total_fp] = total_tp
    for f in range(1, limit + 1):
        best[f] = max(best[f], best[f - 1])
    certain = 0
    for j in range(firm.shape[0]):
        certain += weight[firm[j]]
    return certain > limit
