"""PSDS1 of every model of a setting, and of the ensemble of its teachers, in one pass over the evaluation clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from framekd import checkpoints, tables
from framekd.config import UserError
from framekd.data import ClipSet, chunks, strong_set
from framekd.examples import Example, write_examples
from framekd.metrics import PSDS, PSDSResult, evaluation_classes, median_filter
from framekd.models import FrameModel
from framekd.pipeline.common import classes_of, device, label_file, open_store

EXAMPLES = 6


def evaluation_clips(data: str | Path) -> ClipSet:
    """AudioSet Strong's evaluation clips that are in the store, labelled with the training classes."""
    return strong_set(open_store(data), label_file(data, "eval_strong"), classes_of(data)[0])


def evaluate(
    weights: Sequence[str],
    *,
    stage: str,
    setting: str,
    data: str,
    median_seconds: float,
    batch_size: int,
    out: Mapping[str, str],
    **_: Any,
) -> None:
    """Score models (paths …/{model}/seed{n}/model.safetensors); write the table, the classes and some examples."""
    clips = evaluation_clips(data)
    names = [(Path(path).parents[1].name, int(Path(path).parent.name.removeprefix("seed"))) for path in weights]
    models = [_load(path, clips) for path in weights]
    results, shown = score(models, clips, median_seconds=median_seconds, batch_size=batch_size)
    rows = [_row(setting, stage, *name, result) for name, result in zip(names, results, strict=False)]
    if stage == "teachers":
        rows.append(_row(setting, stage, tables.ENSEMBLE, None, results[-1]))
    tables.write_csv(out["table"], pd.DataFrame(rows), digits=9)
    tables.write_csv(out["per_class"], per_class(names, results), digits=9)
    title = f"{stage} of {setting}: {names[0][0]}, seed {names[0][1]}"
    write_examples(out["examples"], shown, classes=clips.classes.names, title=title)


def _load(path: str, clips: ClipSet) -> FrameModel:
    model, spec = checkpoints.load_checkpoint(Path(path).parent)
    if tuple(spec["classes"]) != tuple(clips.classes.names):
        raise UserError(f"{path}: was trained on other classes than the {len(clips.classes)} of the label files")
    return model.eval().to(device())


def score(
    models: Sequence[FrameModel], clips: ClipSet, *, median_seconds: float, batch_size: int
) -> tuple[list[PSDSResult], list[Example]]:
    """PSDS1 per model and, last, of their averaged logits; and the first model's scores on a few clips.

    Ranking is by filtered logits: PSDS is the same for any increasing function of them.
    """
    truth = clips.ground_truth()
    evaluated = evaluation_classes(clips.classes.names, truth)
    durations = dict(zip(clips.ids, np.minimum(clips.durations, 10.0).tolist(), strict=True))
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
        for _ in range(len(models) + 1)
    ]
    shown: list[Example] = []
    for ids, waveform, all_logits in logits(models, clips, batch_size):
        for scorer, values in zip(scorers, all_logits, strict=True):
            scorer.add(ids, median_filter(values, seconds=median_seconds))
        for i in range(min(EXAMPLES - len(shown), len(ids))):
            probabilities = torch.from_numpy(all_logits[0][i].T).sigmoid().numpy()
            shown.append(Example(ids[i], waveform[i], truth[ids[i]], probabilities))
    return [scorer.result() for scorer in scorers], shown


@torch.inference_mode()
def logits(
    models: Sequence[FrameModel], clips: ClipSet, batch_size: int
) -> Iterator[tuple[list[str], np.ndarray, list[np.ndarray]]]:
    """Per batch: ids, waveforms, and logits [clips, frames, classes] of each model and of their mean.

    Models of one front end share its spectrogram.
    """
    for batch in chunks(clips, batch_size):
        wave, mels, out = batch.waveform.to(device()), {}, []
        for model in models:
            if model.name not in mels:
                mels[model.name] = model.frontend(wave)
            out.append(model(mels[model.name])[0].float().transpose(1, 2).cpu().numpy())
        out.append(np.mean(out, axis=0, dtype=np.float32))
        yield batch.ids, batch.waveform.numpy(), out


def _row(setting: str, stage: str, model: str, seed: int | None, result: PSDSResult) -> dict[str, Any]:
    counts = result.counts
    return {
        "setting": setting,
        "stage": stage,
        "model": model,
        "seed": "" if seed is None else seed,
        "psds1": result.at(0.0),
        "psds1_variance_penalty": result.at(1.0),
        **{key: counts[key] for key in ("clips", "events", "hours", "classes")},
        "clips_without_events": len(result.dropped_clips),
        "merged_events": result.merged_events,
    }


def per_class(names: Sequence[tuple[str, int]], results: Sequence[PSDSResult]) -> pd.DataFrame:
    """PSDS1 of each class: columns model, seed, class, psds1, events (true ones in the evaluation clips)."""
    rows = [
        {"model": model, "seed": seed, "class": name, "psds1": value, "events": result.events_per_class[name]}
        for (model, seed), result in zip(names, results, strict=False)
        for name, value in result.per_class.items()
    ]
    return pd.DataFrame(rows)
