"""A task of one's own: a folder with train.tsv, test.tsv and recordings."""

from __future__ import annotations

import itertools
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
from framekd.tasks.problem import Audio, Judge, Part, Problem, Run, Score, hold_out
from framekd.units import SAMPLE_RATE

VALID = "valid.tsv"


def load(name: str, root: Path, options: OwnTask) -> Problem:
    """Read a further task: trained on train.tsv, tested on test.tsv, one run per seed.

    All tables have the columns filename, onset, offset and event_label; a row with a file name alone is a file without
    events. The recordings are anywhere below the folder. The classes are those of the training events, sorted by name.
    Learning rates and weights are judged on valid.tsv, or on a share of the training files that is held out.

    Raises:
        UserError: a table or recording is missing, a table has clip labels, two tables list a file, or one has a class
            that no training event has.
    """
    judged = options.validates and (root / VALID).is_file()
    tables = {split: _events(root / f"{split}.tsv") for split in ("train", *(["valid"] if judged else []), "test")}
    for (_, one), (_, other) in itertools.combinations(tables.items(), 2):
        if both := sorted(set(one.files) & set(other.files)):
            raise UserError(
                f"{other.path}: {len(both)} of {len(other.files)} files are in {one.path.name} too ({some(both)})"
            )
    for table in tables.values():
        if strange := unknown_classes(table.counts(), tables["train"].counts()):
            raise UserError(f"{table.path}: events of classes that train.tsv lacks: {strange}")
    listed = {file for table in tables.values() for file in table.files}
    audio = Audio(
        {file: path for table in tables.values() for file, path in locate(table, root, listed=listed).items()},
        root / "cache-16k.h5",
    )
    seconds = dict(zip(audio.ids, (audio.samples / SAMPLE_RATE).tolist()))
    tables = {split: fit_times(table, seconds) for split, table in tables.items()}
    events = {file: rows for table in tables.values() for file, rows in table.events.items()}
    classes = ClassList.of(sorted(tables["train"].counts()))
    clips = labelled(audio.ids, audio, classes, events=events)
    if options.metric == "onset_f":
        begin, end = hear.centre_frames(clips.onset, clips.offset)
        clips = replace(clips, begin=begin, end=end)
    places = {split: np.flatnonzero([file in table.events for file in audio.ids]) for split, table in tables.items()}
    if options.validates and not judged:
        search = options.search
        places["train"], places["valid"] = hold_out(places["train"], search.share, seed=search.seed, what=name)

    def score_of(split: str) -> Score:
        if options.metric == "onset_f":
            return hear.scorer(events, classes, options)
        table = tables.get(split, tables["train"]).select(audio.ids[i] for i in places[split])
        return _psds1(table, seconds, classes, options)

    parts = {split: Part("files", chosen) for split, chosen in places.items()}
    valid = (parts["valid"],) if "valid" in parts else ()
    runs = tuple(Run(str(seed), seed, (parts["train"],), parts["test"], valid) for seed in options.seeds)
    judge = _judge(score_of("valid"), options) if valid else None
    return Problem(name, classes, {"files": clips}, runs, "strong", score_of("test"), judge)


def _judge(score: Score, options: OwnTask) -> Judge:
    """The task's own score; PSDS1 without the variance penalty, with which all bad rates are worth 0."""
    value = "value" if options.metric == "onset_f" else "psds1_without_penalty"
    return lambda parts: score(parts[0])[value]


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
