"""A task of one's own: a folder with train.tsv, test.tsv and recordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from framekd.config import OwnTask, UserError
from framekd.data import labelled
from framekd.labels import ClassList
from framekd.labels.tsv import Annotations, read_annotations, unknown_classes
from framekd.metrics import median_filter
from framekd.recordings import fit_times, locate, some
from framekd.scoring import event_scores
from framekd.tasks import hear
from framekd.tasks.problem import Audio, Part, Problem, Run, Score
from framekd.units import SAMPLE_RATE


def load(name: str, root: Path, options: OwnTask) -> Problem:
    """Read a further task: trained on train.tsv, tested on test.tsv, one run per seed.

    Both tables have the columns filename, onset, offset and event_label; a row with a file name alone is a file without
    events. The recordings are anywhere below the folder. The classes are those of the training events, sorted by name.

    Raises:
        UserError: a table or recording is missing, a table has clip labels, both tables list a file, or a test event
            has a class that no training event has.
    """
    train, test = tables = [_events(root / f"{split}.tsv") for split in ("train", "test")]
    if both := sorted(set(train.files) & set(test.files)):
        raise UserError(f"{test.path}: {len(both)} of {len(test.files)} files are in train.tsv too ({some(both)})")
    if strange := unknown_classes(test.counts(), train.counts()):
        raise UserError(f"{test.path}: events of classes that train.tsv lacks: {strange}")
    listed = {*train.files, *test.files}
    audio = Audio(
        {file: path for table in tables for file, path in locate(table, root, listed=listed).items()},
        root / "cache-16k.h5",
    )
    seconds = dict(zip(audio.ids, (audio.samples / SAMPLE_RATE).tolist()))
    train, test = (fit_times(table, seconds) for table in tables)
    events = {**train.events, **test.events}
    classes = ClassList.of(sorted(train.counts()))
    clips = labelled(audio.ids, audio, classes, events=events)
    if options.metric == "onset_f":
        begin, end = hear.centre_frames(clips.onset, clips.offset)
        clips = replace(clips, begin=begin, end=end)
    of_train, of_test = (np.flatnonzero([file in table.events for file in audio.ids]) for table in tables)
    score = _psds1(test, seconds, classes, options)
    if options.metric == "onset_f":
        score = hear.scorer(test.events, classes, options)
    part, tested = Part("files", of_train), Part("files", of_test)
    runs = tuple(Run(str(seed), seed, (part,), tested) for seed in options.seeds)
    return Problem(name, classes, {"files": clips}, runs, "strong", score)


def _psds1(test: Annotations, seconds: Mapping[str, float], classes: ClassList, options: OwnTask) -> Score:
    """PSDS1 with the variance penalty (`value`) and without, and F-measures, of clips of any lengths."""
    lengths = {file: seconds[file] for file in test.files}

    def score(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        smooth = ((file, median_filter(values, options.median_seconds)) for file, values in predictions.items())
        found = event_scores(smooth, test, lengths, classes.names, threshold=options.threshold, facts={}).overall
        about = {"value": found["psds1_with_penalty"], "psds1_without_penalty": found["psds1"]}
        return about | {name: found[name] for name in ("event_f1", "segment_f1")}

    return score


def _events(path: Path) -> Annotations:
    table = read_annotations(path)
    if not table.timed:
        raise UserError(f"{path}: a task needs events with times (filename, onset, offset, event_label)")
    return table
