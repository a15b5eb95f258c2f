"""Event-based F-measure with collars: sed_eval's definition and number of matches, in linear time.

An estimated event matches a reference event of the same file and class if their onsets lie within the collar (and,
where offsets count, their offsets within the larger of the collar and a share of the reference's length); every event
is used at most once and the number of matches is the largest possible (sed_eval's event_matching_type="optimal").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics.truth import Events, check_same_clips, first_five


@dataclass(frozen=True)
class EventF1:
    """F-measure, precision and recall over all events (micro), the F-measure's mean over classes (macro), counts.

    counts: {class: (reference events, estimated events, matches)}. A class without reference and estimated events is
    left out of the macro mean; one with reference events but no estimates counts as 0.
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
        """Everything, ready for JSON."""
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
    """F, precision and recall of counts; 0 where there is nothing to divide by."""
    precision = matches / estimated if estimated else 0.0
    recall = matches / reference if reference else 0.0
    return (2 * precision * recall / (precision + recall) if matches else 0.0), precision, recall


def summarise(counts: dict[str, tuple[int, int, int]], settings: dict[str, Any], files: int) -> EventF1:
    """Micro and macro F-measure from {class: (reference events, estimated events, matches)}."""
    per_class = {name: f_measure(m, r, e)[0] for name, (r, e, m) in counts.items() if r or e}
    reference, estimated, matches = (sum(c[i] for c in counts.values()) for i in range(3))
    f1, precision, recall = f_measure(matches, reference, estimated)
    macro = float(np.mean(list(per_class.values()))) if per_class else 0.0
    return EventF1(f1, precision, recall, macro, per_class, counts, settings, files)


def onset_matches(reference: Sequence[float], estimated: Sequence[float], collar: float) -> int:
    """Largest number of pairs of onsets (seconds) at most `collar` apart, each used once.

    All intervals are equally long, so taking the earliest possible partner each time is optimal: two pointers.
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
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not reference or not estimated:
        return 0
    ref, est = np.array(reference), np.array(estimated)
    tolerance = np.maximum(collar, share * (ref[:, 1] - ref[:, 0]))[:, None]
    fits = (np.abs(ref[:, None, 0] - est[None, :, 0]) <= collar) & (
        np.abs(ref[:, None, 1] - est[None, :, 1]) <= tolerance
    )
    return int((maximum_bipartite_matching(csr_matrix(fits), perm_type="column") >= 0).sum())


def events_by_class(
    events: Sequence[tuple[float, float, str]], file: str, classes: Sequence[str] | None
) -> dict[str, list[tuple[float, float]]]:
    """{class: [(onset, offset), …]} of one file. Raises UserError for NaN and classes that are not listed."""
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
    """Event-based F-measure of {file: [(onset, offset, class), …]} in seconds.

    collar: seconds around the onset; offset_share: also ask for the offset, within max(collar, this share of the
    reference event's length) (None: onsets only); classes: names allowed (None: those that occur).
    Raises UserError if the files differ or a class is not among `classes`.
    """
    if collar <= 0:
        raise ValueError(f"The collar must be longer than 0 s, but is {collar}.")
    check_same_clips(reference_events=reference, estimated_events=estimated)
    counts: dict[str, list[int]] = {name: [0, 0, 0] for name in classes or ()}
    for file, events in reference.items():
        refs, ests = events_by_class(events, file, classes), events_by_class(estimated[file], file, classes)
        for name in refs.keys() | ests.keys():
            r, e = refs.get(name, []), ests.get(name, [])
            if offset_share is None:
                matches = onset_matches([a for a, _ in r], [a for a, _ in e], collar)
            else:
                matches = onset_offset_matches(r, e, collar, offset_share)
            row = counts.setdefault(name, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + len(r), row[1] + len(e), row[2] + matches
    settings = {"metric": "event F1", "collar": collar, "offset_share": offset_share, "matching": "optimal"}
    return summarise({name: tuple(counts[name]) for name in sorted(counts)}, settings, len(reference))  # type: ignore[misc]


def onset_f1(
    reference: Events, estimated: Events, *, collar: float = 0.05, classes: Sequence[str] | None = None
) -> EventF1:
    """Onset F-measure over all events, as HEAR computes it with sed_eval (offsets ignored).

    collar: 0.05 s in the paper's Table II (DCASE 2016 Task 2 and MAESTRO); HEAR also reports 0.2 s for the former.
    reference, estimated: {file: [(onset, offset, class), …]} in seconds. See `event_f1`.
    """
    return event_f1(reference, estimated, collar=collar, classes=classes)
