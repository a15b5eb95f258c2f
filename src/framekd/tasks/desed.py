"""DESED (DCASE 2023 Task 4): weakly labelled real and strongly labelled synthetic clips, 10 classes; PSDS1."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.data import ClipSet, labelled
from framekd.labels import ClassList
from framekd.layouts import find
from framekd.layouts.desed import AUDIO, METADATA, read_strong, read_weak
from framekd.metrics import median_filter, psds1
from framekd.tasks.problem import Audio, Part, Problem, Run, Score


def _audio(root: Path, kind: str, wanted: Sequence[str]) -> Audio:
    """The files of `kind` that exist; missing ones are counted on stderr, because videos are removed from YouTube."""
    folder = find(root, *AUDIO[kind])
    files = {name: folder / name for name in wanted if (folder / name).is_file()}
    if not files:
        raise UserError(
            f"{folder}: has none of the {len(wanted)} files listed as {kind}; check downstream: {{DESED: {{data: …}}}}"
        )
    if len(files) < len(wanted):
        print(f"DESED {kind}: {len(files)} of {len(wanted)} files found in {folder}", file=sys.stderr)
    return Audio(files, root / f"cache-16k-{kind}.h5")


def _pools(root: Path) -> tuple[ClassList, dict[str, ClipSet]]:
    weak = read_weak(find(root, *METADATA["weak"]))
    strong = {kind: read_strong(find(root, *METADATA[kind])) for kind in ("synthetic", "validation")}
    classes = ClassList.of(sorted({c for labels in weak.values() for c in labels}))
    for kind, events in strong.items():
        unknown = {c for rows in events.values() for _, _, c in rows if c not in classes}
        if unknown:
            raise UserError(f"{root}: the {kind} clips have {', '.join(sorted(unknown))}, which no weak clip has")
    pools = {}
    for kind, events in strong.items():
        audio = _audio(root, kind, list(events))
        pools[kind] = labelled(audio.ids, audio, classes, events=events)
    audio = _audio(root, "weak", list(weak))
    pools["weak"] = labelled(audio.ids, audio, classes, clip_labels=weak)
    return classes, pools


def scorer(clips: ClipSet, options: Task) -> Score:
    """The score of DESED: PSDS1 of median-filtered probabilities, with the variance penalty (`value`) and without."""
    truth, names = clips.ground_truth(), list(clips.classes.names)
    durations = dict(zip(clips.ids, clips.durations.tolist()))

    def score(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        smooth = {name: median_filter(values, options.median_seconds) for name, values in predictions.items()}
        plain, strict = (psds1(smooth, truth, durations, names, variance_penalty=flag) for flag in (False, True))
        return {"value": strict.value, "psds1_without_penalty": plain.value, "clips": float(len(smooth))}

    return score


def load(root: Path, options: Task) -> Problem:
    """Read DESED: a batch is half synthetic (strong) and half weak clips; tested on validation; one run per seed."""
    classes, pools = _pools(root)
    whole = {name: Part(name, np.arange(len(pool))) for name, pool in pools.items()}
    train, test = (whole["synthetic"], whole["weak"]), whole["validation"]
    runs = tuple(Run(str(seed), seed, train, test) for seed in options.seeds)
    return Problem("DESED", classes, pools, runs, "both", scorer(pools["validation"], options))
