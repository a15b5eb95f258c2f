"""The tasks that HEAR prepared: DCASE 2016 Task 2 (office sounds) and MAESTRO 5h (piano).

Their layout: labelvocabulary.csv, and per split a JSON file with events and a folder of audio.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.data import ClipSet, labelled
from framekd.events import active_runs
from framekd.labels import ClassList
from framekd.metrics import event_f1, median_filter, onset_f1
from framekd.tasks.problem import Audio, Events, Judge, Part, Problem, Run, Score, find, inside
from framekd.units import FRAME_RATE, FRAME_SECONDS

_AUDIO = ("16000", "48000", "44100", "22050", "audio")


def read_vocabulary(path: Path) -> ClassList:
    """Read the classes, in the order of their index, from a CSV with columns idx and label."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"idx", "label"} <= rows[0].keys():
            raise UserError(f"{path}: expected columns idx,label")
        rows.sort(key=lambda row: int(row["idx"]))
        if [int(row["idx"]) for row in rows] != list(range(len(rows))):
            raise UserError(f"{path}: idx must count from 0 to {len(rows) - 1}")
        return ClassList.of(row["label"] for row in rows)
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected numbers and different labels in the columns idx,label ({error})") from None


def read_split(path: Path, classes: ClassList) -> Events:
    """Read the events of a split. The file has milliseconds, the result has seconds."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not JSON, or not text
        raise UserError(f"{path}: not JSON ({error})") from None
    out: Events = {}
    if not isinstance(content, dict) or not all(isinstance(events, list) for events in content.values()):
        raise UserError(f"{path}: expected a list of events for each file")
    for name, events in content.items():
        rows = []
        for event in events:
            try:
                label = str(event["label"])
                start, end = float(event["start"]), float(event["end"])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: {name} has an event without label, start and end in ms") from None
            if label not in classes:
                raise UserError(f"{path}: {name} has label {label!r}, which labelvocabulary.csv lacks")
            if not 0 <= start <= end < float("inf"):
                raise UserError(f"{path}: {name} has an event from {start} to {end} ms")
            rows.append((start / 1000, end / 1000, label))
        out[inside(name, path)] = sorted(rows)
    if not out:
        raise UserError(f"{path}: lists no files")
    return out


def centre_frames(onset: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-open spans (int32) of the 40-ms frames whose centre lies in [onset, offset + 0.1 µs): HEAR's labels."""
    begin = np.ceil(onset * FRAME_RATE - 0.5 - 1e-6)  # 0.14 s is the centre of frame 3 despite float noise
    end = np.ceil((offset + 1e-7) * FRAME_RATE - 0.5)
    return np.maximum(begin, 0).astype(np.int32), np.maximum(end, 0).astype(np.int32)


def read_pool(root: Path, splits: Sequence[str], classes: ClassList) -> tuple[ClipSet, dict[str, list[int]], Events]:
    """All files of all splits as one set of clips, their positions by split, and their annotated events."""
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
    scores: np.ndarray, classes: Sequence[str], *, min_seconds: float, threshold: float = 0.5
) -> list[tuple[float, float, str]]:
    """Events in probabilities: runs of frames above the threshold, from the first to the last frame centre.

    Args:
        scores: [frames, classes].
        min_seconds: runs whose first and last centre are closer than this are dropped.
    Returns:
        [(onset, offset, class), …] in seconds, sorted by class, then by onset.
    """
    label, first, end = active_runs(scores > threshold)
    last = end - 1
    keep = (last - first) * FRAME_SECONDS >= min_seconds - 1e-9
    times = ((np.stack([first, last])[:, keep] + 0.5) * FRAME_SECONDS).tolist()
    return [(a, b, classes[c]) for a, b, c in zip(*times, label[keep].tolist())]


def scorer(reference: Events, classes: ClassList, options: Task) -> Score:
    """HEAR's scores after median filter, threshold and shortest duration; `value` is the onset F at 50 ms."""

    def score(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        wanted = {name: reference[name] for name in predictions}
        found: Events = {}
        for name, probabilities in predictions.items():
            smooth = median_filter(probabilities, options.median_seconds)
            found[name] = detect(smooth, classes.names, min_seconds=options.min_seconds, threshold=options.threshold)
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


def judge_of(score: Score) -> Judge:
    """The task's own score, of validation clips."""
    return lambda parts: score(parts[0])["value"]


def load_dcase16(root: Path, options: Task) -> Problem:
    """DCASE 2016 Task 2: 120-s files, 11 office sounds; trained on train.json, tested on test.json; one run per seed.

    valid.json judges learning rates and weights.
    """
    classes = read_vocabulary(root / "labelvocabulary.csv")
    clips, places, events = read_pool(root, ("train", "valid", "test"), classes)
    train, valid, test = (Part("files", np.array(places[split])) for split in ("train", "valid", "test"))
    runs = tuple(Run(str(seed), seed, (train,), test, (valid,)) for seed in options.seeds)
    score = scorer(events, classes, options)
    return Problem("DC16-T2", classes, {"files": clips}, runs, "strong", score, judge_of(score))


def load_maestro(root: Path, options: Task) -> Problem:
    """MAESTRO 5h: the first 120 s of piano recordings, 88 pitches; one run per fold (five in the real set).

    Run f is tested on fold f, judged on fold f + 1 and trained on the others, as HEAR's. Its seed is the first of
    `options.seeds` plus f.
    """
    classes = read_vocabulary(root / "labelvocabulary.csv")
    folds = sorted(path.stem for path in root.glob("fold*.json"))
    if len(folds) < 3:
        raise UserError(f"{root}: found {len(folds)} files fold00.json, fold01.json, …; at least 3 are needed")
    clips, places, events = read_pool(root, folds, classes)
    runs = []
    for f, fold in enumerate(folds):
        held = folds[(f + 1) % len(folds)]
        train = Part("files", np.array(sorted(i for name in folds if name not in (fold, held) for i in places[name])))
        test, valid = (Part("files", np.array(places[name])) for name in (fold, held))
        runs.append(Run(fold, options.seeds[0] + f, (train,), test, (valid,)))
    score = scorer(events, classes, options)
    return Problem("MAESTRO", classes, {"files": clips}, tuple(runs), "strong", score, judge_of(score))
