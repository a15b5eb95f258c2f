"""DESED (DCASE 2023 Task 4): weakly labelled real and strongly labelled synthetic clips, 10 classes; PSDS1."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framekd.config import DesedTask, Task, UserError
from framekd.data import ClipSet, labelled
from framekd.labels import ClassList
from framekd.layouts import find
from framekd.layouts.desed import AUDIO, METADATA, read_strong, read_weak
from framekd.layouts.folders import PUBLIC
from framekd.metrics import median_filter, psds1
from framekd.tasks.problem import Audio, Judge, Part, Problem, Run, Score, hold_out


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


def _pools(root: Path, *, judging: bool, public: bool) -> tuple[ClassList, dict[str, ClipSet]]:
    weak = read_weak(find(root, *METADATA["weak"]))
    judging = judging and any((root / place).is_file() for place in METADATA["judging"])
    kinds = ["synthetic", "validation", *(["judging"] if judging else []), *([PUBLIC] if public else [])]
    strong = {kind: read_strong(find(root, *METADATA[kind])) for kind in kinds}
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


def judge_of(synthetic: ClipSet, weak: ClipSet, options: Task) -> Judge:
    """The mean of PSDS1 of synthetic clips and of the macro F-measure of weak clips.

    A clip has a class if it has a frame above the threshold. The variance penalty is left out: with it all bad rates
    are worth 0.
    """
    score = scorer(synthetic, options)
    clip = np.repeat(np.arange(len(weak)), np.diff(weak.start))
    truth = np.zeros((len(weak), len(weak.classes)), bool)
    truth[clip, weak.label] = True

    def judge(parts: Sequence[Mapping[str, np.ndarray]]) -> float:
        found = np.stack([parts[1][name].max(0) for name in weak.ids]) > options.threshold
        hits, both = (found & truth).sum(0), found.sum(0) + truth.sum(0)
        f1 = 2 * hits[both > 0] / both[both > 0]
        return (score(parts[0])["psds1_without_penalty"] + float(f1.mean())) / 2

    return judge


def load(root: Path, options: Task) -> Problem:
    """Read DESED: a batch is half synthetic (strong) and half weak clips; tested on validation; one run per seed.

    Where learning rates or weights are judged, a share of the weak clips is held out for it, and of the synthetic clips
    too unless the folder has the official ones for validation. With `public_evaluation`, each run is also scored on
    the public evaluation set.
    """
    public = isinstance(options, DesedTask) and options.public_evaluation
    classes, pools = _pools(root, judging=options.validates, public=public)
    whole = {name: Part(name, np.arange(len(pool))) for name, pool in pools.items()}
    train, test = (whole["synthetic"], whole["weak"]), whole["validation"]
    valid: tuple[Part, ...] = ()
    judge = None
    if options.validates:
        official = whole.get("judging")
        synthetic, held = (train[0], official) if official else _split(train[0], options)
        weak, held_weak = _split(train[1], options)
        train, valid = (synthetic, weak), (held, held_weak)
        strong = pools[held.pool].select(held.clips)
        judge = judge_of(strong, pools["weak"].select(held_weak.clips), options)
    runs = tuple(Run(str(seed), seed, train, test, valid) for seed in options.seeds)
    further = {PUBLIC: (whole[PUBLIC], scorer(pools[PUBLIC], options))} if public else {}
    return Problem("DESED", classes, pools, runs, "both", scorer(pools["validation"], options), judge, further)


def _split(part: Part, options: Task) -> tuple[Part, Part]:
    search = options.search
    pair = hold_out(part.clips, search.share, seed=search.seed, what=f"DESED, {part.pool} clips")
    return Part(part.pool, pair[0]), Part(part.pool, pair[1])
