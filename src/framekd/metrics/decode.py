"""Events from frame scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.metrics._tiles import as_numpy, check_stamps, frame_stamps

Event = tuple[float, float, str]


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
    """Events (onset, offset, class) in seconds: runs of frames with score > threshold, sorted by onset.

    scores [frames, classes], numpy or torch: on the same scale as the threshold (probabilities for 0.5, not logits).
    threshold: one for all, or {class: threshold}. timestamps [frames + 1] seconds (None: 40-ms frames up to 10 s).
    duration: the file's length; events are cut there, and those beginning at or after it dropped.
    times: "edges", from the first frame's beginning to the last frame's end; "centres", from the first frame's
    centre to the last frame's centre, as HEAR decodes (an onset comes out half a frame late).
    min_seconds: shorter events are dropped; measured between the same times. Raises UserError for NaN.
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
    on = np.zeros((len(classes), len(values) + 2), dtype=np.int8)
    on[:, 1:-1] = (values > limit).T
    change = np.diff(on, axis=1)
    which, first = np.nonzero(change == 1)
    last = np.nonzero(change == -1)[1] - 1
    if times == "edges":
        onsets, offsets = stamps[first], stamps[last + 1]
    else:
        centres = (stamps[:-1] + stamps[1:]) / 2
        onsets, offsets = centres[first], centres[last]
    keep = np.ones(len(which), dtype=bool)
    if duration is not None:
        keep &= onsets < duration
        offsets = np.minimum(offsets, duration)
    keep &= offsets - onsets >= min_seconds - 1e-9  # frame times are decimal, their floats are not
    table = zip(onsets[keep].tolist(), offsets[keep].tolist(), (classes[k] for k in which[keep]))
    return sorted(table)
