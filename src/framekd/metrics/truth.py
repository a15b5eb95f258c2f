"""Ground truth, checked and laid out for counting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from framekd.config import UserError

Events = Mapping[str, Sequence[tuple[float, float, str]]]


def first_five(names: Iterable[str]) -> str:
    """Up to five names, sorted, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return f"[{', '.join(listed[:5])}]{more}"


def check_same_clips(**groups: Iterable[str]) -> None:
    """Refuse groups of clip ids that differ, with both difference lists (first five each)."""
    (name_a, a), *others = [(name.replace("_", " "), set(ids)) for name, ids in groups.items()]
    for name_b, b in others:
        if a != b:
            raise UserError(
                f"The clips of {name_a} and {name_b} differ: "
                f"only in {name_a} ({len(a - b)}): {first_five(a - b)}; "
                f"only in {name_b} ({len(b - a)}): {first_five(b - a)}. "
                "Give the same clips in both, an empty event list for a clip without events."
            )


@dataclass(frozen=True)
class Truth:
    """Events per clip, sorted by class and onset, with touching ones merged, and what was left out on the way.

    starts [clips + 1]: clip i owns the rows starts[i] … starts[i + 1] - 1 of class_index, onsets and offsets (seconds).
    """

    clips: list[str]
    classes: list[str]
    starts: np.ndarray
    class_index: np.ndarray
    onsets: np.ndarray
    offsets: np.ndarray
    durations: np.ndarray
    events_per_class: np.ndarray
    merged: int = 0
    ignored_events: int = 0
    dropped_clips: tuple[str, ...] = ()
    outside_list: int = 0
    missing_from_scores: int = 0
    classes_without_truth: tuple[str, ...] = ()
    row: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Total duration; summed by Python's own sum in the given order, as the reference implementation does."""
        return float(sum(self.durations.tolist()))

    def counts(self) -> dict[str, Any]:
        return {
            "clips": len(self.clips),
            "events": int(self.events_per_class.sum()),
            "hours": self.seconds / 3600,
            "classes": len(self.classes),
        }


def merge_touching(events: list[tuple[float, float]], clip: str, name: str) -> list[list[float]]:
    """Sorted events of one clip and class with touching and overlapping ones joined (end >= next start)."""
    joined: list[list[float]] = []
    for onset, offset in sorted(events):
        if not (math.isfinite(onset) and math.isfinite(offset) and offset >= onset):
            raise UserError(
                f"Clip {clip}: the event ({onset}, {offset}, {name}) must have a finite onset that is not after its "
                "offset (seconds)."
            )
        if joined and onset <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], offset)
        else:
            joined.append([onset, offset])
    return joined


def evaluation_classes(training_classes: Iterable[str], ground_truth: Events) -> list[str]:
    """Classes that were trained on and that have events in the evaluation set, sorted by name (407 in AudioSet Strong).

    The paper evaluates on this intersection of the 447 training and 416 evaluation classes.
    """
    present = {name for events in ground_truth.values() for _, _, name in events}
    return sorted(set(training_classes) & present)


def prepare_truth(
    ground_truth: Events,
    durations: Mapping[str, float],
    classes: Sequence[str],
    *,
    drop_clips_without_events: bool = False,
    other_classes: str = "refuse",
    empty_classes: str = "refuse",
    only_clips: Iterable[str] | None = None,
) -> Truth:
    """Check ground truth against durations and classes, merge touching events, lay the events out in arrays.

    ground_truth: {clip: [(onset, offset, class name), …]} in seconds; durations: {clip: seconds}.
    drop_clips_without_events: leave out clips without an event of `classes`, as the authors' evaluation does.
    other_classes, empty_classes: "refuse" or "drop" events of unlisted classes, and listed classes without any event.
    only_clips: evaluate just those of the clips; ids in it that have no ground truth are counted, not refused.
    Raises UserError with the first five offenders.
    """
    for key, value in (("other_classes", other_classes), ("empty_classes", empty_classes)):
        if value not in ("refuse", "drop"):
            raise ValueError(f'{key} must be "refuse" or "drop", but is {value!r}.')
    if len(set(classes)) != len(classes) or not classes:
        raise UserError(f"classes must be a list of different names, but has {len(classes)} of which "
                        f"{len(set(classes))} differ.")  # fmt: skip
    check_same_clips(ground_truth=ground_truth, durations=durations)
    wanted = None if only_clips is None else set(only_clips)
    clips = [clip for clip in durations if wanted is None or clip in wanted]
    if not clips:
        raise UserError("There is no clip to evaluate: none of the listed clips has ground truth.")
    for clip in clips:
        if not (math.isfinite(durations[clip]) and durations[clip] > 0):
            raise UserError(f"Clip {clip} has a duration of {durations[clip]} s; it must be a positive number.")
    return _lay_out(
        clips, ground_truth, durations, list(classes), drop_clips_without_events, other_classes, empty_classes, wanted
    )


def _lay_out(
    clips: list[str],
    ground_truth: Events,
    durations: Mapping[str, float],
    classes: list[str],
    drop_clips: bool,
    other: str,
    empty: str,
    wanted: set[str] | None,
) -> Truth:
    known = set(classes)
    per_clip: dict[str, dict[str, list[list[float]]]] = {}
    ignored, merged, unknown = 0, 0, set()
    for clip in clips:
        by_class: dict[str, list[tuple[float, float]]] = {}
        for onset, offset, name in ground_truth[clip]:
            if name in known:
                by_class.setdefault(name, []).append((float(onset), float(offset)))
            else:
                ignored += 1
                unknown.add(name)
        joined = {name: merge_touching(events, clip, name) for name, events in by_class.items()}
        merged += sum(map(len, by_class.values())) - sum(map(len, joined.values()))
        per_clip[clip] = joined
    if unknown and other == "refuse":
        raise UserError(
            f"{ignored} events have a class that is not evaluated: {first_five(unknown)}. "
            'Add it to `classes`, or leave such events out with other_classes="drop".'
        )
    present = {name for joined in per_clip.values() for name in joined}
    absent = [name for name in classes if name not in present]
    if absent and (empty == "refuse" or len(absent) == len(classes)):
        raise UserError(
            f"{len(absent)} of {len(classes)} classes have no event in the ground truth: {first_five(absent)}. "
            'Leave them out of `classes`, or have them left out with empty_classes="drop".'
        )
    kept_classes = [name for name in classes if name in present]
    index = {name: k for k, name in enumerate(kept_classes)}
    kept = [clip for clip in clips if per_clip[clip] or not drop_clips]
    rows: list[tuple[int, float, float]] = []
    starts = [0]
    for clip in kept:
        for name in sorted(per_clip[clip], key=index.__getitem__):
            rows += [(index[name], onset, offset) for onset, offset in per_clip[clip][name]]
        starts.append(len(rows))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    class_index = np.ascontiguousarray(table[:, 0].astype(np.int32))
    return Truth(
        clips=kept,
        classes=kept_classes,
        starts=np.array(starts, dtype=np.int64),
        class_index=class_index,
        onsets=np.ascontiguousarray(table[:, 1]),
        offsets=np.ascontiguousarray(table[:, 2]),
        durations=np.array([float(durations[clip]) for clip in kept], dtype=np.float64),
        events_per_class=np.bincount(class_index, minlength=len(kept_classes)),
        merged=merged,
        ignored_events=ignored,
        dropped_clips=tuple(sorted(set(clips) - set(kept))),
        outside_list=len(durations) - len(clips),
        missing_from_scores=0 if wanted is None else len(wanted - set(durations)),
        classes_without_truth=tuple(absent),
        row={clip: i for i, clip in enumerate(kept)},
    )
