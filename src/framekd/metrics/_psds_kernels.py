"""Compiled loops of the PSDS and of its bootstrap: changes of the counts per threshold, and curves from changes.

A change point (s, f, t) means: when the threshold falls to s, false positives grow by f and detected events by t.
False positives only add up over clips. So once a class has more than `limit` of them at every threshold of an interval,
that "dead" interval stays off the curve, and its changes are summed into its upper end.

Every function has an explicit signature: numba compiles it when this module is imported and keeps it on disk. Import it
through `framekd.metrics._compile.kernels`: the median filter has its own module, because this one compiles for 8 s.
"""

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit("f8(f8)", **_OPTIONS)
def _micro(x):
    """Round to 6 decimals as numpy.round does (sed_scores_eval's time_decimals)."""
    return np.rint(x * 1e6) / 1e6


@njit("UniTuple(i8, 2)(f8[::1], f8, f8[::1], f8[::1], f8[::1], f8, f8, f8[::1])", **_OPTIONS)
def count_at(column, threshold, stamps, onsets, offsets, dtc, gtc, covered):
    """False positives and detected events of one clip and class at one threshold (detection: score >= threshold).

    column [frames]; stamps [frames + 1] seconds; onsets and offsets [events] seconds; covered [events] is a buffer.
    """
    n_frames, n_events = column.shape[0], onsets.shape[0]
    covered[:n_events] = 0.0
    false_positives = 0
    t = 0
    while t < n_frames:
        if not (column[t] >= threshold and column[t] > -np.inf):
            t += 1
            continue
        start = stamps[t]
        while t < n_frames and column[t] >= threshold and column[t] > -np.inf:
            t += 1
        end = stamps[t]
        inside = 0.0
        for e in range(n_events):
            inside += max(min(end, offsets[e]) - max(start, onsets[e]), 0.0)
        if _micro(inside) >= _micro(dtc * (end - start)):
            for e in range(n_events):
                covered[e] += max(min(end, offsets[e]) - max(start, onsets[e]), 0.0)
        else:
            false_positives += 1
    hits = 0
    for e in range(n_events):
        if _micro(covered[e]) >= _micro(gtc * (offsets[e] - onsets[e])):
            hits += 1
    return false_positives, hits


@njit(inline="always")
def _push(score, fp, tp, k, buf_s, buf_fp, buf_tp, count):
    i = count[k]
    buf_s[k, i] = score
    buf_fp[k, i] = fp
    buf_tp[k, i] = tp
    count[k] = i + 1


@njit(inline="always")
def _alive(score, hi, lo, tail):
    """Whether a change at this score is kept by itself: it lies outside the dead interval lo < s <= hi."""
    return score > hi or (not tail and score <= lo)


@njit(
    "void(f8[::1], i8, f8, f8, b1, f8[:, ::1], i4[:, ::1], i4[:, ::1], i8[::1])",
    **_OPTIONS,
)
def _cell_without_events(column, k, hi, lo, tail, buf_s, buf_fp, buf_tp, count):
    """Every detection is false: one more at each local maximum of the score, one less at each local minimum."""
    n_frames = column.shape[0]
    absorbed = 0
    before = -np.inf
    for t in range(n_frames):
        score = column[t]
        after = column[t + 1] if t + 1 < n_frames else -np.inf
        delta = (1 if score > before else 0) - (1 if after > score else 0)
        before = score
        if delta == 0 or score == -np.inf:
            continue
        if _alive(score, hi, lo, tail):
            _push(score, delta, 0, k, buf_s, buf_fp, buf_tp, count)
        else:
            absorbed += delta
    if absorbed != 0 and not tail:
        _push(hi, absorbed, 0, k, buf_s, buf_fp, buf_tp, count)


@njit(
    "void(f8[::1], f8[::1], f8[::1], f8[::1], f8, f8, i8, f8, f8, b1,"
    "f8[:, ::1], i4[:, ::1], i4[:, ::1], i8[::1], f8[::1])",
    **_OPTIONS,
)
def _cell_with_events(
    column, stamps, onsets, offsets, dtc, gtc, k, hi, lo, tail, buf_s, buf_fp, buf_tp, count, covered
):
    """Count at each distinct score, downwards; inside the dead interval only at its lower end."""
    order = np.sort(column[column > hi]) if tail else np.sort(column)
    fp_before, tp_before = 0, 0
    for i in range(order.shape[0] - 1, -1, -1):
        score = order[i]
        if i > 0 and order[i - 1] == score:
            continue
        if not _alive(score, hi, lo, tail) and i > 0 and not _alive(order[i - 1], hi, lo, tail):
            continue
        fp, tp = count_at(column, score, stamps, onsets, offsets, dtc, gtc, covered)
        if fp != fp_before or tp != tp_before:
            _push(score, fp - fp_before, tp - tp_before, k, buf_s, buf_fp, buf_tp, count)
        fp_before, tp_before = fp, tp


@njit(inline="always")
def _cells_without_events(clip, cells, hi, lo, tail, buf_s, buf_fp, buf_tp, count, pushed):
    """As _cell_without_events for many classes at once, frame by frame; no -inf in the scores unless `tail`.

    clip [frames, classes]; cells: the classes to count. Most scores lie in the dead interval and are skipped.
    """
    n_frames = clip.shape[0]
    for k in cells:
        pushed[k] = 0
    for t in range(n_frames):
        frame = clip[t]
        before, after = clip[max(t - 1, 0)], clip[min(t + 1, n_frames - 1)]
        for k in cells:
            score = frame[k]
            if score > hi[k] or (score <= lo[k] and score > -np.inf):
                delta = (1 if t == 0 or score > before[k] else 0) - (1 if after[k] > score else 0)
                if delta != 0:
                    _push(score, delta, 0, k, buf_s, buf_fp, buf_tp, count)
                    pushed[k] += delta
    for k in cells:
        # at the lowest threshold the whole clip is one detection; the dead interval takes what was not pushed
        if not tail[k] and pushed[k] != 1:
            _push(hi[k], 1 - pushed[k], 0, k, buf_s, buf_fp, buf_tp, count)


def _block(
    scores, top, low, rows, first, c0, c1, ev_start, ev_class, ev_on, ev_off, stamps, dtc, gtc,
    buf_s, buf_fp, buf_tp, count, hi, lo, tail,
):  # fmt: skip
    """Append the change points of classes c0 to c1 - 1 in a block of clips to the classes' buffers.

    scores [clips, frames, classes]; top, low [clips, classes]: highest and lowest score over time; rows [clips]: the
    clips' rows in ev_start, whose events are sorted by class; first: clip to begin with.
    Returns the next clip: the number of clips if all are done, else a buffer is full and must be compacted.
    """
    n_clips, n_frames = scores.shape[0], scores.shape[1]
    width = c1 - c0
    room = buf_s.shape[1] - n_frames - 2
    column = np.empty(n_frames, np.float64)
    listed = np.empty(width, np.int64)
    pushed = np.empty(width, np.int64)
    for n in range(first, n_clips):
        for k in range(width):
            if count[k] > room:
                return n
        cells = 0
        e, end = ev_start[rows[n]], ev_start[rows[n] + 1]
        while e < end and ev_class[e] < c0:
            e += 1
        for k in range(width):
            stop = e
            while stop < end and ev_class[stop] == c0 + k:
                stop += 1
            highest, lowest = top[n, c0 + k], low[n, c0 + k]
            if stop > e:
                for t in range(n_frames):
                    column[t] = scores[n, t, c0 + k]
                _cell_with_events(
                    column, stamps, ev_on[e:stop], ev_off[e:stop], dtc, gtc, k, hi[k], lo[k], tail[k],
                    buf_s, buf_fp, buf_tp, count, np.empty(stop - e, np.float64),
                )  # fmt: skip
            elif highest <= hi[k] and tail[k]:
                pass
            elif highest <= hi[k] and lowest > lo[k]:
                # all scores lie in the dead interval and make one detection at its lower end
                _push(hi[k], 1, 0, k, buf_s, buf_fp, buf_tp, count)
            elif tail[k] or lowest > -np.inf:
                listed[cells] = k
                cells += 1
            else:
                for t in range(n_frames):
                    column[t] = scores[n, t, c0 + k]
                _cell_without_events(column, k, hi[k], lo[k], tail[k], buf_s, buf_fp, buf_tp, count)
            e = stop
        _cells_without_events(scores[n, :, c0:c1], listed[:cells], hi, lo, tail, buf_s, buf_fp, buf_tp, count, pushed)
    return n_clips


_BLOCK = (
    "i8({0}[:, :, ::1], {0}[:, ::1], {0}[:, ::1], i8[::1], i8, i8, i8,"
    "i8[::1], i4[::1], f8[::1], f8[::1], f8[::1], f8, f8,"
    "f8[:, ::1], i4[:, ::1], i4[:, ::1], i8[::1], f8[::1], f8[::1], b1[::1])"
)
block = njit([_BLOCK.format("f4"), _BLOCK.format("f8")], **_OPTIONS)(_block)


@njit("Tuple((i8, f8, f8, b1))(i8[::1], f8[::1], i4[::1], i4[::1], i8, f8[::1], i4[::1], i4[::1])", **_OPTIONS)
def compact(order, score, fp, tp, limit, out_s, out_fp, out_tp):
    """Sum change points of equal scores and of dead intervals into out_*, descending. order: argsort of score.

    Returns (entries written, hi, lo, tail): the dead interval lo < s <= hi with the most entries; tail: it has no lower
    end. hi = -inf: there is none yet.
    """
    written = 0
    total_fp = 0
    dead = False
    swallowed, most = 0, -1
    start = 0.0
    hi, lo, tail = -np.inf, -np.inf, False
    i = order.shape[0] - 1
    while i >= 0:
        value = score[order[i]]
        d_fp, d_tp = 0, 0
        while i >= 0 and score[order[i]] == value:
            d_fp += fp[order[i]]
            d_tp += tp[order[i]]
            i -= 1
        if d_fp == 0 and d_tp == 0:
            continue
        total_fp += d_fp
        if dead and total_fp > limit:
            out_fp[written - 1] += d_fp
            out_tp[written - 1] += d_tp
            swallowed += 1
            continue
        if dead:
            dead = False
            if swallowed > most:
                most, hi, lo = swallowed, start, value
        elif total_fp > limit:
            dead, swallowed, start = True, 0, value
        out_s[written] = value
        out_fp[written] = d_fp
        out_tp[written] = d_tp
        written += 1
    if dead:
        # no lower end: every threshold at or below `start` stays off the curve
        hi, lo, tail = start, -np.inf, True
    return written, hi, lo, tail


@njit("void(f8[::1], i4[::1], i4[::1], i8, i8[::1])", **_OPTIONS)
def best_hits(score, fp, tp, n, best):
    """best[f]: most detected events with at most f false positives. Entries in descending order of distinct scores."""
    best[:] = 0
    total_fp, total_tp = 0, 0
    for i in range(n):
        total_fp += fp[i]
        total_tp += tp[i]
        if total_fp < best.shape[0] and total_tp > best[total_fp]:
            best[total_fp] = total_tp
    for f in range(1, best.shape[0]):
        if best[f] < best[f - 1]:
            best[f] = best[f - 1]


@njit("b1(f8[::1], i4[::1], i4[::1], i4[::1], i4[::1], i8[::1], i8, f8[::1])", **_OPTIONS)
def weighted_hits(score, fp, tp, clip, firm, weight, limit, best):
    """best[f]: most detected events with at most f false positives, f = 0 … limit, for weighted clips.

    Entries (score, fp, tp, clip) are in descending order of score. firm: clips without the class that have a detection
    at every threshold below the entries. Returns whether those thresholds are off the curve: the entries suffice.
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
