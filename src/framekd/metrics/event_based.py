"""Metrics of events: decoding of frame scores, F-measures with collars and of segments (sed_eval), by intersection.

Collars: an estimated event matches a reference event of the same file and class if their onsets differ by at most the
collar and, where offsets count, their offsets by at most max(collar, share of the reference's length). Every event is
matched at most once, and the number of matches is the largest possible (sed_eval's event_matching_type="optimal").
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.events import active_runs
from framekd.metrics.inputs import (
    Event,
    Events,
    as_numpy,
    check_same_clips,
    check_stamps,
    first_five,
    frame_stamps,
    merge_touching,
)


def decode_events(
    scores: Any,
    classes: Sequence[str],
    threshold: float | Mapping[str, float] = 0.5,
    *,
    timestamps: Any = None,
    duration: float | None = None,
    min_seconds: float = 0.0,
    times: str = "edges",
) -> list[Event]:
    """Events of frame scores: runs of frames with score > threshold.

    Args:
        scores: [frames, classes], numpy or torch, on the threshold's scale (probabilities for 0.5, not logits).
        classes: names of the columns.
        threshold: one for all classes, or {class: threshold}.
        timestamps: [frames + 1] seconds; None: 40-ms frames up to 10 s.
        duration: length of the file in seconds. Events are cut there; those that begin at or after it are dropped.
        min_seconds: shorter events are dropped.
        times: "edges": from the first frame's begin to the last frame's end. "centres": from the first frame's centre
            to the last frame's centre, as HEAR decodes (an onset is half a frame late).
    Returns:
        (onset, offset, class) in seconds, sorted by onset.
    Raises:
        UserError: a score is NaN, or shapes do not fit together.
    """
    values = as_numpy(scores)
    if values.ndim != 2 or values.shape[1] != len(classes):
        raise UserError(f"Scores must have the shape [frames, {len(classes)} classes], but have {values.shape}.")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise UserError("The scores to be decoded contain NaN.")
    if times not in ("edges", "centres"):
        raise ValueError(f'times must be "edges" or "centres", but is {times!r}.')
    stamps = frame_stamps(len(values)) if timestamps is None else check_stamps(timestamps)
    if len(stamps) != len(values) + 1:
        raise UserError(f"{len(values)} frames need {len(values) + 1} timestamps, but there are {len(stamps)}.")
    limit: Any = threshold
    if isinstance(threshold, Mapping):
        absent = [name for name in classes if name not in threshold]
        if absent:
            raise UserError(f"There is no threshold for class {absent[0]}.")
        limit = np.array([threshold[name] for name in classes])
    which, first, end = active_runs(values > limit)
    if times == "edges":
        onsets, offsets = stamps[first], stamps[end]
    else:
        centres = (stamps[:-1] + stamps[1:]) / 2
        onsets, offsets = centres[first], centres[end - 1]
    keep = np.ones(len(which), dtype=bool)
    if duration is not None:
        keep &= onsets < duration
        offsets = np.minimum(offsets, duration)
    keep &= offsets - onsets >= min_seconds - 1e-9  # float noise of decimal frame times
    table = zip(onsets[keep].tolist(), offsets[keep].tolist(), (classes[k] for k in which[keep]))
    return sorted(table)


@dataclass(frozen=True)
class EventF1:
    """F-measure, precision and recall over all events (micro), the F-measure's mean over classes (macro), counts.

    Attributes:
        counts: {class: (reference events, estimated events, matches)}.
        macro_f1: leaves out classes with neither reference nor estimated events; reference events without any estimate
            count as 0.
    """

    f1: float
    precision: float
    recall: float
    macro_f1: float
    per_class: dict[str, float]
    counts: dict[str, tuple[int, int, int]]
    settings: dict[str, Any]
    files: int

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        reference, estimated, matches = (sum(c[i] for c in self.counts.values()) for i in range(3))
        return {
            "f1": self.f1,
            "precision": self.precision,
            "recall": self.recall,
            "macro_f1": self.macro_f1,
            "per_class": self.per_class,
            "settings": self.settings,
            "counts": {"files": self.files, "reference": reference, "estimated": estimated, "matches": matches},
        }


def f_measure(matches: int, reference: int, estimated: int) -> tuple[float, float, float]:
    """F, precision and recall of counts; 0 for an empty denominator."""
    precision = matches / estimated if estimated else 0.0
    recall = matches / reference if reference else 0.0
    return (2 * precision * recall / (precision + recall) if matches else 0.0), precision, recall


def _count(
    reference: Events,
    estimated: Events,
    classes: Sequence[str] | None,
    settings: dict[str, Any],
    counts_of: Callable[[list, list, str, str], tuple[int, int, int]],
) -> EventF1:
    """Sum `counts_of(reference, estimated, file, class)` over all files and classes; micro and macro F-measure."""
    check_same_clips(reference_events=reference, estimated_events=estimated)
    sums = {name: [0, 0, 0] for name in classes or ()}
    for file, events in reference.items():
        refs, ests = events_by_class(events, file, classes), events_by_class(estimated[file], file, classes)
        for name in refs.keys() | ests.keys():
            found = counts_of(refs.get(name, []), ests.get(name, []), file, name)
            sums[name] = [a + b for a, b in zip(sums.get(name, (0, 0, 0)), found)]
    counts = {name: (total[0], total[1], total[2]) for name, total in sorted(sums.items())}
    per_class = {name: f_measure(m, r, e)[0] for name, (r, e, m) in counts.items() if r or e}
    n_reference, n_estimated, n_matches = (sum(c[i] for c in counts.values()) for i in range(3))
    f1, precision, recall = f_measure(n_matches, n_reference, n_estimated)
    macro = float(np.mean(list(per_class.values()))) if per_class else 0.0
    return EventF1(f1, precision, recall, macro, per_class, counts, settings, len(reference))


def onset_matches(reference: Sequence[float], estimated: Sequence[float], collar: float) -> int:
    """Largest number of pairs of onsets (seconds) at most `collar` apart, each used once.

    All intervals have one length, so taking the earliest possible partner each time is optimal (two pointers).
    """
    reference, estimated = sorted(reference), sorted(estimated)
    i = j = matches = 0
    while i < len(reference) and j < len(estimated):
        if abs(reference[i] - estimated[j]) <= collar:
            i, j, matches = i + 1, j + 1, matches + 1
        elif estimated[j] < reference[i]:
            j += 1
        else:
            i += 1
    return matches


def onset_offset_matches(
    reference: Sequence[tuple[float, float]], estimated: Sequence[tuple[float, float]], collar: float, share: float
) -> int:
    """Largest number of pairs with onsets within `collar` and offsets within max(collar, share of the length)."""
    if not reference or not estimated:
        return 0
    ref, est = np.array(reference), np.array(estimated)
    tolerance = np.maximum(collar, share * (ref[:, 1] - ref[:, 0]))[:, None]
    fits = (np.abs(ref[:, None, 0] - est[None, :, 0]) <= collar) & (
        np.abs(ref[:, None, 1] - est[None, :, 1]) <= tolerance
    )
    if fits.sum(0).max() <= 1 and fits.sum(1).max() <= 1:  # no event has a choice
        return int(fits.sum())
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_matrix(fits), perm_type="column") >= 0).sum())


def events_by_class(
    events: Sequence[tuple[float, float, str]], file: str, classes: Sequence[str] | None
) -> dict[str, list[tuple[float, float]]]:
    """{class: [(onset, offset), …]} of one file. Raises UserError for NaN and for classes that are not listed."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for onset, offset, name in events:
        if onset != onset or offset != offset:
            raise UserError(f"File {file} has an event of class {name} at NaN seconds.")
        groups[name].append((onset, offset))
    strange = groups.keys() - set(classes) if classes is not None else ()
    if strange:
        raise UserError(f"File {file} has events of classes that are not listed: {first_five(strange)}.")
    return groups


def event_f1(
    reference: Events,
    estimated: Events,
    *,
    collar: float,
    offset_share: float | None = None,
    classes: Sequence[str] | None = None,
) -> EventF1:
    """Event-based F-measure with a collar.

    Args:
        reference, estimated: {file: [(onset, offset, class), …]} in seconds.
        collar: largest difference of onsets in seconds.
        offset_share: also match offsets, within max(collar, this share of the reference's length); None: onsets only.
        classes: names that may occur; None: those that do.
    Raises:
        UserError: the files differ, or a class is not among `classes`.
    """
    if collar <= 0:
        raise ValueError(f"The collar must be longer than 0 s, but is {collar}.")

    def counts_of(ref: list, est: list, *_: str) -> tuple[int, int, int]:
        if offset_share is None:
            matches = onset_matches([a for a, _ in ref], [a for a, _ in est], collar)
        else:
            matches = onset_offset_matches(ref, est, collar, offset_share)
        return len(ref), len(est), matches

    settings = {"metric": "event F1", "collar": collar, "offset_share": offset_share, "matching": "optimal"}
    return _count(reference, estimated, classes, settings, counts_of)


def onset_f1(
    reference: Events, estimated: Events, *, collar: float = 0.05, classes: Sequence[str] | None = None
) -> EventF1:
    """Onset F-measure over all events, as HEAR computes it with sed_eval (offsets are ignored).

    collar: 0.05 s in the paper's Table II (DCASE 2016 Task 2, MAESTRO); HEAR also reports 0.2 s. Else as `event_f1`.
    """
    return event_f1(reference, estimated, collar=collar, classes=classes)


def segment_f1(
    reference: Events,
    estimated: Events,
    *,
    segment_seconds: float = 1.0,
    classes: Sequence[str] | None = None,
) -> EventF1:
    """F-measure of segments, as sed_eval computes it: a segment has a class if an event of it lies partly within.

    Args:
        reference, estimated: {file: [(onset, offset, class), …]} in seconds.
        segment_seconds: length of a segment.
        classes: names that may occur; None: those that do.
    Returns:
        counts are numbers of segments.
    Raises:
        UserError: the files differ, or a class is not among `classes`.
    """
    if segment_seconds <= 0:
        raise ValueError(f"A segment must be longer than 0 s, but is {segment_seconds}.")

    def segments(events: list[tuple[float, float]]) -> set[int]:
        spans = [(math.floor(a / segment_seconds), math.ceil(b / segment_seconds)) for a, b in events]
        return {k for first, end in spans for k in range(first, end)}

    def counts_of(ref: list, est: list, *_: str) -> tuple[int, int, int]:
        truth, found = segments(ref), segments(est)
        return len(truth), len(found), len(truth & found)

    return _count(reference, estimated, classes, {"metric": "segment F1", "segment": segment_seconds}, counts_of)


def intersection_counts(truth: np.ndarray, found: np.ndarray, dtc: float, gtc: float) -> tuple[int, int]:
    """Detected reference events and false detections of one file and class; truth, found [events, 2] seconds.

    A detection is true if at least a share dtc of it lies in reference events. A reference event is detected if at
    least a share gtc of it lies in true detections. Both sides of each comparison are rounded to 6 decimals.
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
    """F-measure by intersection (Bilen et al., ICASSP 2020), as in sed_scores_eval.

    Touching events of a class are merged on both sides.

    Args:
        reference, estimated: {file: [(onset, offset, class), …]} in seconds.
        dtc, gtc: see `intersection_counts`.
        classes: names that may occur; None: those that do.
    Returns:
        counts are (reference events, detected events + false detections, detected events).
    Raises:
        UserError: the files differ, or a class is not among `classes`.
    """

    def counts_of(ref: list, est: list, file: str, name: str) -> tuple[int, int, int]:
        truth, found = (np.array(merge_touching(side, file, name)).reshape(-1, 2) for side in (ref, est))
        hits, wrong = intersection_counts(truth, found, dtc, gtc)
        return len(truth), hits + wrong, hits

    settings = {"metric": "intersection F1", "dtc": dtc, "gtc": gtc, "time_decimals": 6}
    return _count(reference, estimated, classes, settings, counts_of)
