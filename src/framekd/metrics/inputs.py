"""Inputs of the metrics, checked: scores as arrays, frame times, ground truth laid out for counting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.units import CLIP_FRAMES, CLIP_SECONDS, FRAME_SECONDS

Event = tuple[float, float, str]
"""Onset and offset in seconds, and the class."""
Events = Mapping[str, Sequence[Event]]
"""Clip → its events."""


def first_five(names: Iterable[str]) -> str:
    """Up to five names, sorted, and how many more there are."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return f"[{', '.join(listed[:5])}]{more}"


def check_same_clips(**groups: Iterable[str]) -> None:
    """Check that all groups hold the same clip ids.

    Raises:
        UserError: they differ; the message shows both difference lists, five ids each.
    """
    (name_a, a), *others = [(name.replace("_", " "), set(ids)) for name, ids in groups.items()]
    for name_b, b in others:
        if a != b:
            raise UserError(
                f"The clips of {name_a} and {name_b} differ: "
                f"only in {name_a} ({len(a - b)}): {first_five(a - b)}; "
                f"only in {name_b} ({len(b - a)}): {first_five(b - a)}. "
                "Give the same clips in both, and an empty event list for a clip without events."
            )


def frame_stamps(n_frames: int) -> np.ndarray:
    """Boundaries of 40-ms frames up to 10 s: [frames + 1] seconds."""
    if n_frames > CLIP_FRAMES:
        raise UserError(f"{n_frames} frames of 40 ms are more than 10 s: give `timestamps` [frames + 1] in seconds.")
    return np.minimum(np.arange(n_frames + 1) * FRAME_SECONDS, CLIP_SECONDS)


def check_stamps(timestamps: Any) -> np.ndarray:
    """[frames + 1] strictly increasing, finite seconds, as float64."""
    stamps = np.ascontiguousarray(timestamps, dtype=np.float64)
    if stamps.ndim != 1 or len(stamps) < 2 or not np.isfinite(stamps).all() or (np.diff(stamps) <= 0).any():
        raise UserError("timestamps must be one row of [frames + 1] finite, strictly increasing seconds.")
    return stamps


def as_numpy(scores: Any) -> np.ndarray:
    """Array of a tensor (any device, bfloat16 too) or of an array. Copies only where it must."""
    if hasattr(scores, "detach"):
        scores = scores.detach()
        if str(scores.dtype) == "torch.bfloat16":
            scores = scores.float()
        scores = scores.cpu().numpy()
    return np.asarray(scores)


def exact_type(dtype: np.dtype) -> type:
    """float32 for types that it represents exactly (float16, small integers), else float64."""
    small = dtype.kind in "fiub" and dtype.itemsize <= (4 if dtype.kind == "f" else 2)
    return np.float32 if small else np.float64


def portions(scores: Any, clips: Sequence[str] | None, size: int) -> tuple[list[str], Iterator[tuple[list[str], Any]]]:
    """Split scores into portions that fit an `add` method.

    Args:
        scores: {clip: [frames, classes]}, or [clips, frames, classes] with `clips`.
        clips: ids of the array's clips; None for a mapping.
        size: clips per portion of an array. A mapping gives one clip per portion.
    Returns:
        All clip ids, and pairs of ids and scores [clips, frames, classes].
    Raises:
        UserError: the array has more or fewer clips than `clips`.
        ValueError: `clips` is missing, or is given beside a mapping.
    """
    if isinstance(scores, Mapping):
        if clips is not None:
            raise ValueError("clips=[…] belongs to scores given as one array.")
        return list(scores), (([name], as_numpy(values)[None]) for name, values in scores.items())
    if clips is None:
        raise ValueError("Scores given as one array [clips, frames, classes] need clips=[…].")
    names = list(clips)
    if len(names) != len(scores):
        raise UserError(f"There are scores of {len(scores)} clips, but {len(names)} clip names.")
    return names, ((names[i : i + size], scores[i : i + size]) for i in range(0, len(names), size))


@dataclass(frozen=True)
class Truth:
    """Events per clip, sorted by class and onset, touching ones merged; and what was left out.

    Clip i owns rows starts[i] to starts[i + 1] - 1 of class_index, onsets and offsets (seconds).
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
        """Total duration. Python's own sum in the given order, as in sed_scores_eval, so that floats agree."""
        return float(sum(self.durations.tolist()))

    def counts(self) -> dict[str, Any]:
        return {
            "clips": len(self.clips),
            "events": int(self.events_per_class.sum()),
            "hours": self.seconds / 3600,
            "classes": len(self.classes),
        }


def merge_touching(events: Iterable[tuple[float, float]], clip: str, name: str) -> list[list[float]]:
    """Sort events of one clip and class, and join touching and overlapping ones (offset >= next onset)."""
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
    """Classes that were trained and that have events in the evaluation set, sorted by name.

    In AudioSet Strong these are 407 of the 447 training and 416 evaluation classes.
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
    """Check ground truth against durations and classes, merge touching events, put the events into arrays.

    Args:
        ground_truth: {clip: [(onset, offset, class), …]} in seconds.
        durations: {clip: seconds}.
        classes: the evaluated classes.
        drop_clips_without_events: leave out clips without an event of `classes`, as the authors' evaluation does.
        other_classes: "refuse" or "drop" events of classes that are not in `classes`.
        empty_classes: "refuse" or "drop" classes without any event.
        only_clips: evaluate only these clips. Ids without ground truth are counted, not refused.
    Raises:
        UserError: inputs do not fit together; names the first five clips or classes.
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
    if unknown and other_classes == "refuse":
        raise UserError(
            f"{ignored} events have a class that is not evaluated: {first_five(unknown)}. "
            'Add it to `classes`, or set other_classes="drop" to leave such events out.'
        )
    present = {name for joined in per_clip.values() for name in joined}
    absent = [name for name in classes if name not in present]
    if absent and (empty_classes == "refuse" or len(absent) == len(classes)):
        raise UserError(
            f"{len(absent)} of {len(classes)} classes have no event in the ground truth: {first_five(absent)}. "
            'Remove them from `classes`, or set empty_classes="drop" to leave them out.'
        )
    kept = [clip for clip in clips if per_clip[clip] or not drop_clips_without_events]
    truth = _lay_out({clip: per_clip[clip] for clip in kept}, durations, [name for name in classes if name in present])
    return Truth(
        **truth,
        merged=merged,
        ignored_events=ignored,
        dropped_clips=tuple(sorted(set(clips) - set(kept))),
        outside_list=len(durations) - len(clips),
        missing_from_scores=0 if wanted is None else len(wanted - set(durations)),
        classes_without_truth=tuple(absent),
    )


def _lay_out(
    per_clip: Mapping[str, Mapping[str, list[list[float]]]], durations: Mapping[str, float], classes: list[str]
) -> dict[str, Any]:
    """The arrays of `Truth` from {clip: {class: [[onset, offset], …]}}."""
    index = {name: k for k, name in enumerate(classes)}
    rows: list[tuple[int, float, float]] = []
    starts = [0]
    for by_class in per_clip.values():
        for name in sorted(by_class, key=index.__getitem__):
            rows += [(index[name], onset, offset) for onset, offset in by_class[name]]
        starts.append(len(rows))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    class_index = np.ascontiguousarray(table[:, 0].astype(np.int32))
    return {
        "clips": list(per_clip),
        "classes": classes,
        "starts": np.array(starts, dtype=np.int64),
        "class_index": class_index,
        "onsets": np.ascontiguousarray(table[:, 1]),
        "offsets": np.ascontiguousarray(table[:, 2]),
        "durations": np.array([float(durations[clip]) for clip in per_clip], dtype=np.float64),
        "events_per_class": np.bincount(class_index, minlength=len(classes)),
        "row": {clip: i for i, clip in enumerate(per_clip)},
    }
