"""Intersection-based F-measure of decoded events (Bilen et al., ICASSP 2020; as sed_scores_eval computes it)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framekd.metrics.onset import EventF1, events_by_class, summarise
from framekd.metrics.truth import Events, check_same_clips, merge_touching


def intersection_counts(truth: np.ndarray, found: np.ndarray, dtc: float, gtc: float) -> tuple[int, int]:
    """Detected reference events and false detections of one file and class; truth, found [events, 2] seconds.

    A detection is good if at least dtc of it lies in reference events; a reference event is detected if at least gtc of
    it lies in good detections. Both comparisons are made after rounding to 6 decimals.
    """
    overlap = np.maximum(
        np.minimum(found[:, None, 1], truth[None, :, 1]) - np.maximum(found[:, None, 0], truth[None, :, 0]), 0.0
    )
    good = overlap.sum(1).round(6) >= (dtc * (found[:, 1] - found[:, 0])).round(6)
    detected = overlap[good].sum(0).round(6) >= (gtc * (truth[:, 1] - truth[:, 0])).round(6)
    return int(detected.sum()), int((~good).sum())


def intersection_f1(
    reference: Events,
    estimated: Events,
    *,
    dtc: float = 0.5,
    gtc: float = 0.5,
    classes: Sequence[str] | None = None,
) -> EventF1:
    """F-measure of {file: [(onset, offset, class), …]} in seconds by intersection, micro and macro.

    Touching events of a class are merged on both sides. counts: {class: (reference events, detected events + false
    detections, detected events)}.
    Raises UserError if the files differ.
    """
    check_same_clips(reference_events=reference, estimated_events=estimated)
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in classes or ()}
    for file, events in reference.items():
        refs, ests = events_by_class(events, file, classes), events_by_class(estimated[file], file, classes)
        for name in refs.keys() | ests.keys():
            truth, found = (
                np.array(merge_touching(side.get(name, []), file, name)).reshape(-1, 2) for side in (refs, ests)
            )
            hits, wrong = intersection_counts(truth, found, dtc, gtc)
            row = counts.setdefault(name, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + len(truth), row[1] + hits + wrong, row[2] + hits
    settings = {"metric": "intersection F1", "dtc": dtc, "gtc": gtc, "time_decimals": 6}
    return summarise({name: tuple(counts[name]) for name in sorted(counts)}, settings, len(reference))  # type: ignore[misc]
