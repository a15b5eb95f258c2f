"""PSDS1 of trained models, or of the ensemble of teachers, in one pass over the evaluation clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from framekd import checkpoints, tables
from framekd.config import UserError
from framekd.data import ClipSet, chunks
from framekd.examples import Example, write_examples
from framekd.inference import batch_logits, default_device
from framekd.jobs import EvaluateJob
from framekd.metrics import PSDS, CrossCheck, PSDSResult, evaluation_classes, median_filter
from framekd.models import FrameModel
from framekd.pipeline.train import Inputs, strong_clips
from framekd.units import CLIP_SECONDS

EXAMPLES = 6


def evaluate(job: EvaluateJob, *, inputs: Inputs, out: Mapping[str, Sequence[str]]) -> None:
    """Score models, each by itself, or (stage "ensembles") the average of their logits.

    Args:
        job: names the models, in the order of the inputs.
        inputs: stores, train_strong, eval_strong, mid_to_display_name, and `weights` of the models.
        out: lists of files. `tables` and `per_class` (csv) have one per model; `examples` (npz) has one for the first
            model, or none. Of an ensemble: `tables` with one file.
    """
    clips = strong_clips(inputs, "eval")
    models = [_load(path, clips) for path in inputs["weights"]]
    together = job.stage == "ensembles"
    results, shown = score(
        models,
        clips,
        median_seconds=job.median_seconds,
        batch_size=job.batch_size,
        cross_check=job.cross_check,
        ensemble=together,
    )
    names: list[tuple[str, int | None]] = [(tables.ENSEMBLE, None)] if together else [*job.models]
    for name, result, path in zip(names, results, out["tables"], strict=True):
        tables.write_csv(path, pd.DataFrame([_row(job, *name, result)]), digits=9)
    for name, result, path in zip(job.models, results, out.get("per_class", [])):
        tables.write_csv(path, per_class(*name, result), digits=9)
    model, seed = job.models[0]
    for path in out.get("examples", []):
        title = f"{job.stage} of {job.setting}: {model}, seed {seed}"
        write_examples(path, shown, classes=clips.classes.names, title=title)


def _load(path: str, clips: ClipSet) -> FrameModel:
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
    """PSDS1 per model, or only of their averaged logits; and the first model's scores on a few clips.

    Clips are ranked by filtered logits: PSDS is the same for any increasing function of them.

    Args:
        models: of one class list.
        clips: labelled evaluation clips.
        median_seconds: length of the median filter.
        batch_size: clips per forward pass.
        cross_check: classes of the last result that sed_scores_eval scores too; 0 is none.
        ensemble: score the average of the models' logits, and nothing else.
    """
    truth = clips.ground_truth()
    evaluated = evaluation_classes(clips.classes.names, truth)
    durations = dict(zip(clips.ids, np.minimum(clips.durations, CLIP_SECONDS).tolist(), strict=True))
    scorers = [
        PSDS(
            evaluated,
            truth,
            durations,
            score_classes=clips.classes.names,
            drop_clips_without_events=True,
            other_classes="drop",
            notes={"median_seconds": median_seconds},
        )
        for _ in range(1 if ensemble else len(models))
    ]
    check = None
    if cross_check:
        check = CrossCheck(evaluated, truth, durations, score_classes=clips.classes.names, count=cross_check, seed=0)
    shown: list[Example] = []
    for batch, found in batch_logits(models, chunks(clips, batch_size), device=default_device()):
        values: list[np.ndarray] = [frames.transpose(1, 2).cpu().numpy() for frames, _ in found]
        scored = [np.stack(values).mean(axis=0, dtype=np.float32)] if ensemble else values
        filtered = [median_filter(one, seconds=median_seconds) for one in scored]
        for scorer, one in zip(scorers, filtered, strict=True):
            scorer.add(batch.ids, one)
        if check is not None:
            check.add(batch.ids, filtered[-1])
        for i in range(min(EXAMPLES - len(shown), len(batch.ids))):
            probabilities = torch.from_numpy(values[0][i].T).sigmoid().numpy()
            shown.append(Example(batch.ids[i], batch.waveform[i].numpy(), truth[batch.ids[i]], probabilities))
    results = [scorer.result() for scorer in scorers]
    if check is not None:
        check.verify(results[-1])
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
