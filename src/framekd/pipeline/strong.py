"""Step 3: teachers, the ensemble of their logits, and students. One function trains both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import nn

from framekd import checkpoints
from framekd.config import Recipe, Tracking, UserError
from framekd.data import ClipSet, Loader, chunks, strong_set
from framekd.ensemble import SoftLabels, write_ensemble
from framekd.models import FrameModel
from framekd.pipeline.common import classes_of, device, label_file, open_store, provenance
from framekd.pipeline.pretrain import start_from
from framekd.train import Fit, fit, is_main, launch, numpy_generator, torch_generator, validation_loss


def training_clips(data: str | Path) -> ClipSet:
    """AudioSet Strong's training clips that are in the store."""
    return strong_set(open_store(data), label_file(data, "train_strong"), classes_of(data)[0])


@dataclass(frozen=True)
class Given:
    """What the trainings of a job are given: plain data, which other processes can be handed.

    ensemble: the file of soft labels; ``block["missing_clips"]`` tells what becomes of clips that it lacks.
    """

    block: Mapping[str, Any]
    start: str
    data: str
    ensemble: str | None = None
    tracking: Mapping[str, Any] | None = None


def train(given: Given, runs: Mapping[int, str], *, rate: str | None = None, processes: int = 1) -> None:
    """Train one model per seed on frame labels (and on the ensemble's), from the encoder in ``given.start``.

    runs: seed → where its weights go. rate: the file with the learning rate that a search chose. processes: how many
    train each model together.
    """
    if rate is not None:
        chosen = json.loads(Path(rate).read_text())["learning_rate"]
        recipe = {**given.block["recipe"], "learning_rate": chosen}
        given = replace(given, block={**given.block, "recipe": recipe})
    launch(_train, given, dict(runs), processes=processes)


def _train(given: Given, runs: Mapping[int, str]) -> None:
    clips, recipe = training_clips(given.data), given.block["recipe"]
    for seed, weights in runs.items():
        directory = Path(weights).parent

        def finish(model: FrameModel, result: Fit, seed: int = seed, directory: Path = directory) -> None:
            note = provenance(given.start, seed=seed, recipe=recipe, step=result.kept_step, **result.provenance)
            if "missing_clips" in given.block:  # a ready-made file, which no other stage of the run tells of
                note = {**note, "soft_labels": given.ensemble}
            checkpoints.save_checkpoint(directory, model, classes=clips.classes.names, provenance=note)

        train_one(given, clips, seed=seed, directory=directory, finish=finish)


def train_one(
    given: Given, clips: ClipSet, *, seed: int, directory: Path, finish: Callable[[FrameModel, Fit], None]
) -> None:
    """Train one model on `clips`; `finish` is handed it before the state of the run is removed."""
    recipe = Recipe.model_validate(given.block["recipe"])
    soft = soft_labels(given, clips)
    model = start_from(
        given.start,
        clips,
        recipe,
        sequence_model=given.block.get("sequence_model"),
        generator=torch_generator(seed, "init"),
    )
    kept, held = split(clips, recipe.validation_share, seed=seed)
    fit(
        model,
        Loader(kept, recipe, seed=seed, soft=soft),
        recipe,
        lr=recipe.rate(model.name),
        seed=seed,
        directory=directory,
        objective="strong",
        validation=validator(held, recipe) if len(held) else None,
        finish=lambda result: finish(model, result),
        identity={"start": str(given.start), "clips": len(kept)},
        tracking=Tracking.model_validate(given.tracking or {}),
    )


def soft_labels(given: Given, clips: ClipSet) -> SoftLabels | None:
    """What a training distils: the ensemble of this run, or a ready-made file, which may lack some of `clips`.

    How many it has is printed. UserError if a ready-made file has none of them.
    """
    if given.ensemble is None:
        return None
    soft = SoftLabels(given.ensemble, clips.classes, missing_clips=given.block.get("missing_clips", "refuse"))
    if soft.missing_clips == "labels":
        known = sum(soft.row(name) is not None for name in clips.ids)
        if not known:
            raise UserError(
                f"{given.ensemble} has soft labels for none of the {len(clips)} training clips, such as "
                f"{clips.ids[0]!r}; give a file that was made from AudioSet Strong's training clips"
            )
        if is_main():
            print(
                f"{given.ensemble}: soft labels for {known} of {len(clips)} training clips; "
                f"the other {len(clips) - known} train on their labels alone",
                flush=True,
            )
    return soft


def fetch_soft_labels(block: Mapping[str, Any], *, out: str) -> None:
    """Fetch a ready-made file of soft labels to `out`, going on where a broken fetch stopped; its sum lies beside."""
    path = checkpoints.fetch(block["url"], out, sha256=block["sha256"])
    if not h5py.is_hdf5(path):
        raise UserError(f"{block['url']} is no HDF5 file; write the address of the file itself, not of a page")
    print(Path(f"{out}.sha256").read_text().strip())


def split(clips: ClipSet, share: float, *, seed: int, purpose: str = "validation clips") -> tuple[ClipSet, ClipSet]:
    """Training clips, and the `share` of them that is held out."""
    order = numpy_generator(seed, purpose).permutation(len(clips))
    held = round(share * len(clips))
    if share and not 0 < held < len(clips):
        raise UserError(f"a share of {share} of {len(clips)} clips leaves one of the two parts empty; hold out another")
    return clips.select(np.sort(order[held:])), clips.select(np.sort(order[:held]))


def label_loss(model: nn.Module, clips: ClipSet, *, batch_size: int) -> float:
    """Mean loss on the labels of `clips` alone, whatever the training distils."""
    batches = chunks(clips, batch_size)
    return validation_loss(model, batches, Recipe(), objective="strong", device=device())["val/loss"]


def validator(clips: ClipSet, recipe: Recipe) -> Callable[[nn.Module], Mapping[str, float]]:
    """Loss on held-out clips, as `fit` asks for it."""

    def validation(model: nn.Module) -> Mapping[str, float]:
        return {"val/loss": label_loss(model, clips, batch_size=recipe.batch_size)}

    return validation


def average(teachers: Sequence[str], *, data: str, batch_size: int, out: str) -> None:
    """Logits of all teachers on all training clips, averaged per class and frame."""
    clips = training_clips(data)
    members = [Path(weights).parent for weights in teachers]
    write_ensemble(out, members, clips, classes=clips.classes, batch_size=batch_size, device=device())
