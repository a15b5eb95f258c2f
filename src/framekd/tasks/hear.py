"""Tasks in the layout of HEAR's prepared data: labelvocabulary.csv, one JSON a split, a folder of audio a split."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.data import ClipSet, labelled
from framekd.events import FRAME_RATE
from framekd.labels import ClassList
from framekd.metrics import event_f1, median_filter, onset_f1
from framekd.tasks.problem import Audio, Score, find

FRAME_SECONDS = 1 / FRAME_RATE
THRESHOLD = 0.5
Events = dict[str, list[tuple[float, float, str]]]
_AUDIO = ("16000", "48000", "44100", "22050", "audio")


def read_vocabulary(path: Path) -> ClassList:
    """Classes in the order of their index: columns idx, label."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"idx", "label"} <= rows[0].keys():
        raise UserError(f"{path}: expected columns idx,label")
    rows.sort(key=lambda row: int(row["idx"]))
    if [int(row["idx"]) for row in rows] != list(range(len(rows))):
        raise UserError(f"{path}: idx must count from 0 to {len(rows) - 1}")
    return ClassList.of(row["label"] for row in rows)


def read_split(path: Path, classes: ClassList) -> Events:
    """Events of a split: {file: [(onset, offset, label), …]} in seconds, from milliseconds."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    out: Events = {}
    for name, events in content.items():
        rows = []
        for event in events:
            label = str(event["label"])
            start, end = float(event["start"]), float(event["end"])
            if label not in classes:
                raise UserError(f"{path}: {name} has label {label!r}, which labelvocabulary.csv lacks")
            if not 0 <= start <= end:
                raise UserError(f"{path}: {name} has an event from {start} to {end} ms")
            rows.append((start / 1000, end / 1000, label))
        out[name] = sorted(rows)
    if not out:
        raise UserError(f"{path}: has no files")
    return out


def centre_frames(onset: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-open spans of the 40-ms frames whose centre lies in [onset, offset + 0.1 µs): HEAR's labels."""
    begin = np.ceil(onset * FRAME_RATE - 0.5 - 1e-6)  # 0.14 s is the centre of frame 3, whatever floats make of it
    end = np.ceil((offset + 1e-7) * FRAME_RATE - 0.5)
    return np.maximum(begin, 0).astype(np.int32), np.maximum(end, 0).astype(np.int32)


def read_pool(root: Path, splits: Sequence[str], classes: ClassList) -> tuple[ClipSet, dict[str, list[int]], Events]:
    """All files of all splits as one set of clips, their positions by split, and their events as annotated."""
    audio = find(root, *_AUDIO)
    events: Events = {}
    files: dict[str, Path] = {}
    home: dict[str, str] = {}
    for split in splits:
        for name, rows in read_split(root / f"{split}.json", classes).items():
            if name in events:
                raise UserError(f"{root}: {name} is in two splits")
            events[name], home[name] = rows, split
            files[name] = find(audio, f"{split}/{name}", name)
    source = Audio(files, root / "cache-16k.h5")
    clips = labelled(source.ids, source, classes, events=events)
    begin, end = centre_frames(clips.onset, clips.offset)
    places = {split: [i for i, name in enumerate(source.ids) if home[name] == split] for split in splits}
    return replace(clips, begin=begin, end=end), places, {name: events[name] for name in source.ids}


def detect(
    scores: np.ndarray, classes: Sequence[str], *, min_seconds: float, threshold: float = THRESHOLD
) -> list[tuple[float, float, str]]:
    """Events of probabilities [frames, classes]: runs above the threshold, from their first to their last frame centre.

    Runs whose first and last centre are less than `min_seconds` apart are dropped.
    """
    active = np.pad(scores > threshold, ((1, 1), (0, 0))).astype(np.int8)
    change = np.diff(active, axis=0).T
    label, first = np.nonzero(change == 1)
    last = np.nonzero(change == -1)[1] - 1
    keep = (last - first) * FRAME_SECONDS >= min_seconds - 1e-9
    times = ((np.stack([first, last])[:, keep] + 0.5) * FRAME_SECONDS).tolist()
    return [(a, b, classes[c]) for a, b, c in zip(*times, label[keep].tolist())]


def scorer(reference: Events, classes: ClassList, options: Task) -> Score:
    """HEAR's scores after median filter, threshold 0.5 and least duration: onset F-measure at 50 ms over all events."""

    def score(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        wanted = {name: reference[name] for name in predictions}
        found: Events = {}
        for name, probabilities in predictions.items():
            smooth = median_filter(probabilities, options.median_seconds)
            found[name] = detect(smooth, classes.names, min_seconds=options.min_seconds)
        onset = onset_f1(wanted, found, collar=0.05, classes=classes.names)
        loose = onset_f1(wanted, found, collar=0.2, classes=classes.names)
        whole = event_f1(wanted, found, collar=0.05, offset_share=0.2, classes=classes.names)
        return {
            "value": onset.f1,
            "precision": onset.precision,
            "recall": onset.recall,
            "onset_200ms": loose.f1,
            "onset_offset_50ms": whole.f1,
            "reference_events": float(sum(map(len, wanted.values()))),
            "detected_events": float(sum(map(len, found.values()))),
        }

    return score
