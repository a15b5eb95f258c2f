"""PSDS1 of trained models, or of the ensemble of teachers, in one pass over the evaluation clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from framekd import checkpoints, tables
from framekd.config import UserError
from framekd.data import ClipSet, chunks, weak_set
from framekd.examples import Example, write_examples
from framekd.inference import batch_logits, default_device
from framekd.jobs import EvaluateJob, EvaluateStep2Job
from framekd.labels import read_weak_classes
from framekd.metrics import PSDS, CrossCheck, PSDSResult, evaluation_classes, median_filter
from framekd.models import FrameModel
from framekd.pipeline.train import Inputs, strong_clips
from framekd.pipeline.watch import weak_map
from framekd.store import Store
from framekd.units import CLIP_SECONDS

EXAMPLES = 6


def evaluate(job: EvaluateJob, *, inputs: Inputs, out: Mapping[str, Sequence[str]]) -> None:
    """Score models, each by itself, or (stage "ensembles") the average of their logits.

    Where the evaluation clips have subsets, column psds1 is that of the job's subset, and psds1_SUBSET of each other.

    Args:
        job: names the models, in the order of the inputs.
        inputs: stores, train_strong, eval_strong, mid_to_display_name, `weights` of the models, and `subsets`, at most
            one JSON file whose entry eval_subsets has the clip ids of each subset.
        out: lists of files. `tables` and `per_class` (csv) have one per model; `examples` (npz) has one for the first
            model, or none. Of an ensemble: `tables` with one file.
    Raises:
        UserError: the job's subset is none of the file's.
    """
    clips = strong_clips(inputs, "eval")
    models = [load_model(path, clips) for path in inputs["weights"]]
    groups = {"all": set(clips.ids)}
    for path in inputs["subsets"] if job.subset else []:
        groups = {name: set(ids) for name, ids in json.loads(Path(path).read_text())["eval_subsets"].items()}
    main = job.subset or "all"
    if main not in groups:
        raise UserError(f"evaluation.subset is {main!r}, but the evaluation clips have {', '.join(groups)}")
    together = job.stage == "ensembles"
    found, shown = score_groups(
        models,
        clips,
        groups,
        median_seconds=job.median_seconds,
        batch_size=job.batch_size,
        cross_check=job.cross_check,
        ensemble=together,
    )
    names: list[tuple[str, int | None]] = [(tables.ENSEMBLE, None)] if together else [*job.models]
    for i, (name, path) in enumerate(zip(names, out["tables"], strict=True)):
        others = {f"psds1_{other}": found[other][i].at(0.0) for other in groups if other != main}
        row = {**_row(job, *name, found[main][i]), "subset": main, **others}
        tables.write_csv(path, pd.DataFrame([row]), digits=9)
    for name, result, path in zip(job.models, found[main], out.get("per_class", [])):
        tables.write_csv(path, per_class(*name, result), digits=9)
    model, seed = job.models[0]
    for path in out.get("examples", []):
        title = f"{job.stage} of {job.setting}: {model}, seed {seed}"
        write_examples(path, shown, classes=clips.classes.names, title=title)


def evaluate_step2(job: EvaluateStep2Job, *, inputs: Inputs, out: str) -> None:
    """Write the mAP of a Step 2 checkpoint: columns model, source, map (0..1), clips, classes (that occur), note.

    `map` is empty for a published file without a clip head of the weak classes; `note` says so.

    Args:
        job: names the model.
        inputs: stores, eval_segments, class_labels, and `weights` of the model.
        out: table (csv).
    Raises:
        UserError: the model was trained on other classes.
    """
    model, spec = checkpoints.load_checkpoint(Path(inputs["weights"]).parent)
    classes = read_weak_classes(inputs["class_labels"])
    clips = weak_set(Store(inputs["stores"]), inputs["eval_segments"], classes)
    row: dict[str, Any] = {"model": job.model, "source": job.source, "map": np.nan, "clips": len(clips), "classes": 0}
    known = list(spec["clip_classes"] or [])
    if known == ["none"]:
        note = spec["provenance"].get("clip_head", "no head in the file")
    elif missing := [name for name in classes.names if name not in known]:
        raise UserError(
            f"{inputs['weights']}: has no clip predictions of {len(missing)} classes, such as {missing[0]!r}"
        )
    else:
        columns = [known.index(name) for name in classes.names]
        found, note = weak_map(model, clips, columns=columns, batch_size=job.batch_size), ""
        row |= {"map": found.value, "classes": len(found.per_class)}
    tables.write_csv(out, pd.DataFrame([row | {"note": note}]), digits=9)


def load_model(path: str, clips: ClipSet) -> FrameModel:
    model, spec = checkpoints.load_checkpoint(Path(path).parent)
    if tuple(spec["classes"]) != tuple(clips.classes.names):
        raise UserError(f"{path}: was trained on other classes than the {len(clips.classes)} of the label files")
    return model


def score(
    models: Sequence[FrameModel],
    clips: ClipSet,
    *,
    median_seconds: float,
    batch_size: int,
    cross_check: int = 0,
    ensemble: bool = False,
) -> tuple[list[PSDSResult], list[Example]]:
    """PSDS1 on all of `clips`: see :func:`score_groups`."""
    about: dict[str, Any] = {"median_seconds": median_seconds, "batch_size": batch_size, "cross_check": cross_check}
    found, shown = score_groups(models, clips, {"all": set(clips.ids)}, **about, ensemble=ensemble)
    return found["all"], shown


def score_groups(
    models: Sequence[FrameModel],
    clips: ClipSet,
    groups: Mapping[str, Set[str]],
    *,
    median_seconds: float,
    batch_size: int,
    cross_check: int = 0,
    ensemble: bool = False,
) -> tuple[dict[str, list[PSDSResult]], list[Example]]:
    """PSDS1 on each group of clips, in one pass over them: per model, or only of their averaged logits.

    Clips are ranked by filtered logits: PSDS is the same for any increasing function of them.

    Args:
        models: of one class list.
        clips: labelled evaluation clips.
        groups: clip ids by name of the group.
        median_seconds: length of the median filter.
        batch_size: clips per forward pass.
        cross_check: classes of the last result that sed_scores_eval scores too; 0 is none.
        ensemble: score the average of the models' logits, and nothing else.

    Returns:
        The results by group, and the first model's scores on a few clips of the first group.
    """
    truth = clips.ground_truth()
    durations = dict(zip(clips.ids, np.minimum(clips.durations, CLIP_SECONDS).tolist(), strict=True))
    members = {name: [clip for clip in clips.ids if clip in ids] for name, ids in groups.items()}
    scorers: dict[str, list[PSDS]] = {}
    checks: dict[str, CrossCheck] = {}
    for name, ids in members.items():
        events, seconds = {clip: truth[clip] for clip in ids}, {clip: durations[clip] for clip in ids}
        evaluated = evaluation_classes(clips.classes.names, events)
        about: dict[str, Any] = {"score_classes": clips.classes.names}
        scorers[name] = [
            PSDS(
                evaluated,
                events,
                seconds,
                drop_clips_without_events=True,
                other_classes="drop",
                notes={"median_seconds": median_seconds},
                **about,
            )
            for _ in range(1 if ensemble else len(models))
        ]
        if cross_check:
            checks[name] = CrossCheck(evaluated, events, seconds, count=cross_check, seed=0, **about)
    first, shown = next(iter(members)), list[Example]()
    for batch, found in batch_logits(models, chunks(clips, batch_size), device=default_device()):
        values: list[np.ndarray] = [frames.transpose(1, 2).cpu().numpy() for frames, _ in found]
        scored = [np.stack(values).mean(axis=0, dtype=np.float32)] if ensemble else values
        filtered = [median_filter(one, seconds=median_seconds) for one in scored]
        for name, group in groups.items():
            rows = [i for i, clip in enumerate(batch.ids) if clip in group]
            if not rows:
                continue
            inside = [batch.ids[i] for i in rows]
            for scorer, one in zip(scorers[name], filtered, strict=True):
                scorer.add(inside, one[rows])
            if name in checks:
                checks[name].add(inside, filtered[-1][rows])
        for i, clip in enumerate(batch.ids):
            if clip in groups[first] and len(shown) < EXAMPLES:
                probabilities = torch.from_numpy(values[0][i].T).sigmoid().numpy()
                shown.append(Example(clip, batch.waveform[i].numpy(), truth[clip], probabilities))
    results = {name: [scorer.result() for scorer in some] for name, some in scorers.items()}
    for name, check in checks.items():
        check.verify(results[name][-1])
    return results, shown


def _row(job: EvaluateJob, model: str, seed: int | None, result: PSDSResult) -> dict[str, Any]:
    counts = result.counts
    return {
        "setting": job.setting,
        "stage": job.stage,
        "model": model,
        "seed": "" if seed is None else seed,
        "psds1": result.at(0.0),
        "psds1_variance_penalty": result.at(1.0),
        **{key: counts[key] for key in ("clips", "events", "hours", "classes")},
        "clips_without_events": len(result.dropped_clips),
        "merged_events": result.merged_events,
    }


def per_class(model: str, seed: int, result: PSDSResult) -> pd.DataFrame:
    """PSDS1 of each class: columns model, seed, class, psds1, events (true ones in the evaluation clips)."""
    rows = [
        {"model": model, "seed": seed, "class": name, "psds1": value, "events": result.events_per_class[name]}
        for name, value in result.per_class.items()
    ]
    return pd.DataFrame(rows)
