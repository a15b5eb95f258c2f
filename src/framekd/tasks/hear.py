"""The tasks that HEAR prepared: DCASE 2016 Task 2 (office sounds) and MAESTRO 5h (piano).

Their layout: labelvocabulary.csv, and per split a JSON file with events and a folder of audio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.data import ClipSet, labelled
from framekd.events import active_runs
from framekd.labels import ClassList
from framekd.layouts import Events
from framekd.layouts.hear import locate, read_split, read_vocabulary
from framekd.metrics import event_f1, median_filter, onset_f1
from framekd.tasks.problem import Audio, Judge, Part, Problem, Run, Score
from framekd.units import FRAME_RATE, FRAME_SECONDS


def centre_frames(onset: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half-open spans (int32) of the 40-ms frames whose centre lies in [onset, offset + 0.1 µs): HEAR's labels."""
    begin = np.ceil(onset * FRAME_RATE - 0.5 - 1e-6)  # 0.14 s is the centre of frame 3 despite float noise
    end = np.ceil((offset + 1e-7) * FRAME_RATE - 0.5)
    return np.maximum(begin, 0).astype(np.int32), np.maximum(end, 0).astype(np.int32)


def read_pool(root: Path, splits: Sequence[str], classes: ClassList) -> tuple[ClipSet, dict[str, list[int]], Events]:
    """All files of all splits as one set of clips, their positions by split, and their annotated events."""
    events: Events = {}
    files: dict[str, Path] = {}
    home: dict[str, str] = {}
    for split in splits:
        listed = read_split(root / f"{split}.json", classes)
        for name, rows in listed.items():
            if name in events:
                raise UserError(f"{root}: {name} is in two splits")
            events[name], home[name] = rows, split
        files |= locate(root, split, listed)
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
