"""Step 3: teachers, the ensemble of their logits, and students. One function trains both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from framekd import checkpoints
from framekd.config import Recipe, UserError
from framekd.data import ClipSet, Loader, chunks, strong_set
from framekd.ensemble import SoftLabels, write_ensemble
from framekd.pipeline.common import classes_of, device, label_file, open_store, provenance
from framekd.pipeline.pretrain import start_from
from framekd.train import Fit, fit, numpy_generator, torch_generator, validation_loss


def training_clips(data: str | Path) -> ClipSet:
    """AudioSet Strong's training clips that are in the store."""
    return strong_set(open_store(data), label_file(data, "train_strong"), classes_of(data)[0])


def train(
    block: Mapping[str, Any], *, start: str, data: str, runs: Mapping[int, str], ensemble: str | None = None
) -> None:
    """Train one model per seed on frame labels (and on the ensemble's), from the encoder in `start`."""
    recipe = Recipe.model_validate(block["recipe"])
    clips = training_clips(data)
    soft = SoftLabels(ensemble, clips.classes) if ensemble else None
    for seed, weights in runs.items():
        _train_one(block, recipe, clips, soft, start=start, seed=seed, directory=Path(weights).parent)


def _train_one(
    block: Mapping[str, Any],
    recipe: Recipe,
    clips: ClipSet,
    soft: SoftLabels | None,
    *,
    start: str,
    seed: int,
    directory: Path,
) -> None:
    model = start_from(
        start,
        clips,
        recipe,
        sequence_model=block.get("sequence_model"),
        generator=torch_generator(seed, "init"),
    )
    kept, held = split(clips, recipe.validation_share, seed=seed)

    def finish(result: Fit) -> None:
        note = provenance(start, seed=seed, recipe=block["recipe"], step=result.kept_step, **result.provenance)
        checkpoints.save_checkpoint(directory, model, classes=clips.classes.names, provenance=note)

    fit(
        model,
        Loader(kept, recipe, seed=seed, soft=soft),
        recipe,
        lr=recipe.rate(model.name),
        seed=seed,
        directory=directory,
        objective="strong",
        validation=validator(held, recipe) if len(held) else None,
        finish=finish,
        identity={"start": str(start), "clips": len(kept)},
    )


def split(clips: ClipSet, share: float, *, seed: int) -> tuple[ClipSet, ClipSet]:
    """Training clips, and the `share` of them that is held out for the validation loss."""
    order = numpy_generator(seed, "validation clips").permutation(len(clips))
    held = round(share * len(clips))
    if share and not 0 < held < len(clips):
        raise UserError(f"validation_share: {share} of {len(clips)} clips leaves one of the two parts empty")
    return clips.select(np.sort(order[held:])), clips.select(np.sort(order[:held]))


def validator(clips: ClipSet, recipe: Recipe) -> Callable[[nn.Module], Mapping[str, float]]:
    """Loss on held-out clips, as `fit` asks for it."""

    def validation(model: nn.Module) -> Mapping[str, float]:
        batches = chunks(clips, recipe.batch_size)
        return validation_loss(model, batches, recipe, objective="strong", device=device())

    return validation


def average(teachers: Sequence[str], *, data: str, batch_size: int, out: str) -> None:
    """Logits of all teachers on all training clips, averaged per class and frame."""
    clips = training_clips(data)
    members = [Path(weights).parent for weights in teachers]
    write_ensemble(out, members, clips, classes=clips.classes, batch_size=batch_size, device=device())
