"""Steps 1 and 2: published checkpoints, weights from a seed, and training on AudioSet Weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from framekd import checkpoints, metrics
from framekd.config import Recipe, Tracking
from framekd.data import ClipSet, Loader, chunks, weak_set
from framekd.labels import read_weak_classes
from framekd.models import FrameModel, build_model
from framekd.pipeline.common import device, label_file, open_store, provenance
from framekd.store import Store
from framekd.train import Fit, fit, launch, torch_generator


def step1(model: str, block: Mapping[str, Any], *, downloads: str, out: str) -> None:
    """A published checkpoint as our own (`url`), or weights drawn from a seed (`seed`)."""
    made = build_model(model, n_classes=1, sizes=block["sizes"])
    if "seed" in block:
        made.init_weights(torch_generator(block["seed"], "step1", model))
        source: Mapping[str, Any] = {"seed": block["seed"]}
    else:
        path = Path(downloads) / block["url"].rsplit("/", 1)[-1]
        checkpoints.fetch(block["url"], path, sha256=block["sha256"])
        checkpoints.load_reference(made, checkpoints.read_weights(path), heads=False)
        source = {"url": block["url"], "file": path.name}
    checkpoints.save_checkpoint(Path(out).parent, made, classes=["none"], provenance=provenance(None, **source))


def step2(
    block: Mapping[str, Any],
    *,
    start: str,
    data: str,
    splits: Sequence[str],
    out: str,
    processes: int = 1,
    tracking: Mapping[str, Any] | None = None,
) -> None:
    """Train on the clip labels of AudioSet Weak, and note the mAP on its evaluation clips.

    processes: how many train the model together. tracking: the configuration's block of that name.
    """
    launch(_step2, block, start, data, list(splits), Path(out).parent, tracking, processes=processes)


def _step2(
    block: Mapping[str, Any],
    start: str,
    data: str,
    splits: Sequence[str],
    directory: Path,
    tracking: Mapping[str, Any] | None,
) -> None:
    recipe, seed = Recipe.model_validate(block["recipe"]), block["seed"]
    classes = read_weak_classes(label_file(data, "class_labels"))
    store = open_store(data)
    clips = weak_set(store, [label_file(data, split) for split in splits], classes)
    model = start_from(start, clips, recipe, generator=torch_generator(seed, "init"))

    def finish(result: Fit) -> None:
        score = weak_map(model, store, label_file(data, "eval"), classes)
        note = provenance(start, seed=seed, recipe=block["recipe"], mean_average_precision=score, **result.provenance)
        checkpoints.save_checkpoint(directory, model, classes=classes.names, provenance=note)

    fit(
        model,
        Loader(clips, recipe, seed=seed),
        recipe,
        lr=recipe.rate(model.name),
        seed=seed,
        directory=directory,
        objective="weak",
        finish=finish,
        identity={"start": str(start), "clips": len(clips)},
        tracking=Tracking.model_validate(tracking or {}),
    )


def start_from(
    start: str | Path,
    clips: ClipSet,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    sequence_model: str | None = None,
) -> FrameModel:
    """The encoder of a checkpoint with new heads for the classes of `clips` (and a new BiGRU), from `generator`."""
    spec = checkpoints.read_spec(Path(start).parent)
    n_classes = len(clips.classes)
    model = build_model(spec["model"], n_classes=n_classes, sequence_model=sequence_model, sizes=spec["sizes"])
    model.init_sequence_model(generator)
    model.new_heads(generator=generator, std=0.01 if recipe.head_init == "normal" else None)
    if recipe.head_init == "prior":
        for head in (model.frame_head, model.clip_head):
            head.bias.data.copy_(torch.from_numpy(clips.log_odds()))
    checkpoints.load_encoder(model, Path(start).parent)
    return model


@torch.no_grad()
def weak_map(model: FrameModel, store: Store, segments: Path, classes: Any) -> float | None:
    """mAP on the evaluation clips of AudioSet Weak that are in the store; None if there are none."""
    clips: ClipSet = weak_set(store, segments, classes)
    model.eval().to(device())
    scores, labels = [], []
    for batch in chunks(clips, 64):
        scores.append(model(model.frontend(batch.waveform.to(device())))[1].cpu())
        assert batch.clip_labels is not None
        labels.append(batch.clip_labels)
    return metrics.mean_average_precision(torch.cat(scores).numpy(), torch.cat(labels).numpy()).value
