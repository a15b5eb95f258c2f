"""Slow and plain: the PSDS straight from its definition, and sed_scores_eval called as the authors call it."""

import numpy as np


def slow_psds(scores, truth, durations, classes, stamps, *, dtc=0.7, gtc=0.7, e_max=100.0, alpha_st=0.0):
    """(value, {class: value}): every threshold is applied to every clip and the events are counted one by one."""
    seconds = sum(durations.values())
    curves = {}
    for k, name in enumerate(classes):
        points = [(0, 0)]
        n_events = sum(c == name for events in truth.values() for *_, c in events)
        for threshold in np.unique(np.concatenate([scores[clip][:, k] for clip in scores])):
            fp = tp = 0
            for clip in scores:
                if scores[clip][:, k].max() < threshold:
                    continue  # nothing is detected, not even an event of no length
                found = runs((scores[clip][:, k] >= threshold) & (scores[clip][:, k] > -np.inf), stamps)
                wanted = [(a, b) for a, b, c in truth[clip] if c == name]
                good = []
                for a, b in found:
                    inside = sum(max(min(b, d) - max(a, c), 0.0) for c, d in wanted)
                    # without any event of the class a detection is false, even where dtc is 0
                    if wanted and np.round(inside, 6) >= np.round(dtc * (b - a), 6):
                        good.append((a, b))
                fp += len(found) - len(good)
                for c, d in wanted:
                    inside = sum(max(min(b, d) - max(a, c), 0.0) for a, b in good)
                    tp += bool(np.round(inside, 6) >= np.round(gtc * (d - c), 6))
            points.append((fp, tp))
        curves[name] = [(fp / seconds * 3600, tp / n_events) for fp, tp in points if fp / seconds * 3600 <= e_max]
    single = {name: area(curve, e_max) for name, curve in curves.items()}
    grid = sorted({x for curve in curves.values() for x, _ in curve})
    rates = np.array([[max(y for x, y in curve if x <= g) for g in grid] for curve in curves.values()])
    effective = np.maximum(rates.mean(0) - alpha_st * rates.std(0), 0)
    return staircase(list(zip(grid, effective)), e_max), single


def runs(on, stamps):
    """(start, end) seconds of the runs of True."""
    found, start = [], None
    for t, active in enumerate([*on, False]):
        if active and start is None:
            start = t
        if not active and start is not None:
            found.append((stamps[start], stamps[t]))
            start = None
    return found


def area(curve, e_max):
    """Area under the running maximum of one class's curve, divided by e_max."""
    return staircase([(x, max(b for a, b in curve if a <= x)) for x in sorted({x for x, _ in curve})], e_max)


def staircase(curve, e_max):
    """Area under a curve that holds each value until the next x; it may fall, as the mean less the spread does."""
    ends = [x for x, _ in curve[1:]] + [e_max]
    return sum(y * (end - x) for (x, y), end in zip(curve, ends)) / e_max


def reference_psds(scores, truth, durations, classes, stamps, *, dtc=0.7, gtc=0.7, e_max=100.0, alpha_st=0.0):
    """The same from sed_scores_eval."""
    from sed_scores_eval.base_modules.scores import create_score_dataframe
    from sed_scores_eval.intersection_based import psds

    frames = {
        clip: create_score_dataframe(rows.astype(float), np.asarray(stamps, float), list(classes))
        for clip, rows in scores.items()
    }
    value, single, *_ = psds(
        frames, truth, durations, dtc_threshold=dtc, gtc_threshold=gtc, alpha_st=alpha_st, max_efpr=e_max
    )
    return value, single
