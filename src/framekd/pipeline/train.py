"""Steps 2 and 3: training on AudioSet Weak, and of teachers and students on AudioSet Strong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from framekd import checkpoints
from framekd.clip_soft_labels import ClipSoftLabels
from framekd.config import SEARCH, Recipe, TrainRecipe, UserError, WeakRecipe
from framekd.data import ClipSet, Loader, chunks, strong_set, weak_set
from framekd.graph import HISTORY, SPEC, WEIGHTS
from framekd.inference import default_device
from framekd.jobs import Step2Job, TrainJob
from framekd.labels import ClassList, derive_classes, read_display_names, read_strong, read_weak_classes
from framekd.labels.extra import joined, read_extra, with_own
from framekd.models import FrameModel
from framekd.pipeline.checkpoints import provenance, start_from
from framekd.pipeline.kept import alone, each, give_back, keep, key
from framekd.pipeline.watch import hold_out, strong_metrics, watched_clips, weak_metrics
from framekd.soft_labels import SoftLabels
from framekd.store import Store
from framekd.train import (
    Fit,
    Objective,
    RunOptions,
    Validation,
    fit,
    is_main,
    launch,
    numpy_generator,
    torch_generator,
    validation_loss,
)

R = TypeVar("R", bound=TrainRecipe)
Inputs = Mapping[str, Any]
"""Files of a job by the names that its rule gives them: a path, or a list of paths."""


def processes(gpus: int) -> int:
    """How many processes train a model together: one per GPU that the job asked for and has; one without any."""
    return max(1, min(gpus, torch.cuda.device_count()))


# Step 2 -----------------------------------------------------------------------------------------------------------


def train_weak(job: Step2Job, *, inputs: Inputs, weights: Sequence[str], processes: int = 1) -> None:
    """Train each model of `job` on clip labels, and on soft labels where it distils.

    Args:
        job: the recipe of each model.
        inputs: stores, segments, class_labels; `weights` to start from, by model; `rates`, files with the rates that
            searches chose, of the models whose recipe says "search"; `soft_labels`: the logits of clips and (of .npy)
            their index, or nothing.
        weights: outputs, by model.
        processes: how many train a model together.
    """
    starts = zip(with_rates(job.recipes, inputs["rates"]).items(), inputs["weights"], weights, strict=True)
    each(
        (name, partial(_weak, job, inputs, recipe, Path(start).parent, Path(out).parent, processes))
        for (name, recipe), start, out in starts
    )


def with_rates(recipes: Mapping[str, R], rates: Sequence[str]) -> dict[str, R]:
    """Recipes by model, in which the rates that searches chose stand for "search"; `rates` are their files in order."""
    files = iter(rates)
    return {
        model: recipe.model_copy(update={"learning_rate": json.loads(Path(next(files)).read_text())["learning_rate"]})
        if recipe.learning_rate == SEARCH
        else recipe
        for model, recipe in recipes.items()
    }


def _of_one(inputs: Inputs, start: Path) -> dict[str, Any]:
    """The inputs of one training among those of a job."""
    return {**inputs, "weights": [str(start / WEIGHTS)], "specs": [str(start / SPEC)], "rates": []}


def _outputs(directory: Path) -> list[Path]:
    return [directory / name for name in (WEIGHTS, SPEC, HISTORY)]


def _weak(
    job: Step2Job, inputs: Inputs, recipe: WeakRecipe, start: Path, directory: Path, processes: int
) -> str | None:
    own = _of_one(inputs, start)
    name = key(job, own, recipes=recipe)
    with alone(directory):
        if give_back(_outputs(directory), name):
            return None
        return launch(_train_weak, job, own, recipe, start, directory, name, processes=processes)


def _train_weak(
    job: Step2Job, inputs: Inputs, recipe: WeakRecipe, start: Path, directory: Path, name: str
) -> str | None:
    clips = weak_clips(inputs)
    soft = clip_soft_labels(inputs, clips) if recipe.distillation_weight > 0 else None

    def finish(model: FrameModel, result: Fit) -> None:
        note = provenance(
            start,
            seed=job.seed,
            recipe=recipe.model_dump(mode="json"),
            soft_labels=None if soft is None else {"file": str(soft.path), "clips": soft.known},
            **result.provenance,
        )
        checkpoints.save_checkpoint(directory, model, classes=clips.classes.names, provenance=note)
        keep(_outputs(directory), name)

    return train_one_weak(job, recipe, clips, soft, start=start, directory=directory, finish=finish).signal


def train_one_weak(
    job: Step2Job,
    recipe: WeakRecipe,
    clips: ClipSet,
    soft: ClipSoftLabels | None,
    *,
    start: Path,
    directory: Path,
    finish: Callable[[FrameModel, Fit], None],
) -> Fit:
    """Train one model on clip labels of `clips`; `finish` gets it before the saved state of the run is removed."""
    model = start_from(start, clips, recipe, generator=torch_generator(job.seed, "init"))
    kept, sample = hold_out(clips, None, job.watch)
    return fit(
        model,
        Loader(kept, recipe, seed=job.seed, soft=soft, audio_on=job.audio_on),
        recipe,
        lr=recipe.rate(model.name),
        seed=job.seed,
        objective=Objective("weak", distillation_weight=recipe.distillation_weight),
        directory=directory,
        watch=watched_clips(kept, sample, job.watch, weak_metrics),
        finish=lambda result: finish(model, result),
        identity={"start": str(start), "clips": len(kept)},
        options=RunOptions(tracking=job.tracking),
    )


def weak_clips(inputs: Inputs) -> ClipSet:
    """AudioSet Weak's training clips that are stored."""
    return weak_set(Store(inputs["stores"]), inputs["segments"], read_weak_classes(inputs["class_labels"]))


def clip_soft_labels(inputs: Inputs, clips: ClipSet) -> ClipSoftLabels:
    """The soft labels of Step 2; prints how many of `clips` have some. UserError if none has."""
    logits, *index = inputs["soft_labels"]
    soft = ClipSoftLabels(logits, clips.ids, clips.classes, index=next(iter(index), None))
    if is_main():
        rest = f"the other {len(clips) - soft.known} are trained on labels alone"
        print(f"{logits}: soft labels for {soft.known} of {len(clips)} training clips; {rest}", flush=True)
    return soft


# Step 3 -----------------------------------------------------------------------------------------------------------


def strong_classes_of(train_strong: str, names: str) -> ClassList:
    """The classes of AudioSet Strong's training labels; their number was checked when the clips were listed."""
    return derive_classes(read_strong(train_strong).labels, read_display_names(names), source=train_strong)


def strong_clips(inputs: Inputs, split: str = "train") -> ClipSet:
    """AudioSet Strong's clips of `split` ("train" or "eval") that are stored, labelled with the training classes.

    Where `inputs` has a table of own events (`extra`), its classes are behind AudioSet's, and its clips are training
    clips.
    """
    classes = strong_classes_of(inputs["train_strong"], inputs["mid_to_display_name"])
    labels = read_strong(inputs[f"{split}_strong"])
    for path in inputs.get("extra", []):
        own = read_extra(path)
        classes = with_own(classes, own.counts(), read_display_names(inputs["mid_to_display_name"]), source=path)
        labels = joined(labels, own, classes) if split == "train" else labels
    return strong_set(Store(inputs["stores"]), labels, classes)


def train_strong(job: TrainJob, *, inputs: Inputs, weights: Sequence[str], processes: int = 1) -> None:
    """Train each model of `job` with each seed on frame labels, and on the ensemble's where it distils.

    Args:
        job: the recipe of each model.
        inputs: stores, train_strong, mid_to_display_name; `weights` to start from, by model; `rates`, files with
            the rates that searches chose, of the models whose recipe says "search"; `soft_labels`, at most one file.
        weights: outputs, by model, then by seed.
        processes: how many train a model together.
    """
    recipes = with_rates(job.recipes, inputs["rates"])
    starts = zip(recipes, map(Path, inputs["weights"]), strict=True)
    members = [(name, start.parent, seed) for name, start in starts for seed in job.seeds]
    each(
        (f"{name} seed {seed}", partial(_strong, job, inputs, recipes[name], start, seed, Path(out).parent, processes))
        for (name, start, seed), out in zip(members, weights, strict=True)
    )


def _strong(
    job: TrainJob, inputs: Inputs, recipe: Recipe, start: Path, seed: int, directory: Path, processes: int
) -> str | None:
    own = _of_one(inputs, start)
    name = key(job, own, recipes=recipe, seed=seed)
    with alone(directory):
        if give_back(_outputs(directory), name):
            return None
        return launch(_train_strong, job, own, recipe, start, seed, directory, name, processes=processes)


def _train_strong(
    job: TrainJob, inputs: Inputs, recipe: Recipe, start: Path, seed: int, directory: Path, name: str
) -> str | None:
    clips = strong_clips(inputs)

    def finish(model: FrameModel, result: Fit) -> None:
        about = {"recipe": recipe.model_dump(mode="json"), "step": result.kept_step, **result.provenance}
        if job.missing_clips == "labels":  # a ready-made file, which no other stage of the run records
            about["soft_labels"] = inputs["soft_labels"][0]
        note = provenance(start, seed=seed, **about)
        checkpoints.save_checkpoint(directory, model, classes=clips.classes.names, provenance=note)
        keep(_outputs(directory), name)

    return train_one(job, recipe, clips, inputs, start=start, seed=seed, directory=directory, finish=finish).signal


def train_one(
    job: TrainJob,
    recipe: Recipe,
    clips: ClipSet,
    inputs: Inputs,
    *,
    start: Path,
    seed: int,
    directory: Path,
    finish: Callable[[FrameModel, Fit], None],
) -> Fit:
    """Train one model on `clips`; `finish` gets it before the saved state of the run is removed."""
    soft = soft_labels(job, clips, inputs)
    generator = torch_generator(seed, "init")
    model = start_from(start, clips, recipe, sequence_model=job.sequence_model, generator=generator)
    model.unrolled_gru = job.unrolled_gru
    kept, held = split(clips, recipe.validation_share, seed=seed)
    kept, sample = hold_out(kept, held, job.watch)
    validation = None
    if len(held):
        validation = Validation(
            lambda trained: {"val/loss": label_loss(trained, held, batch_size=recipe.batch_size)},
            every_epochs=recipe.validate_epochs,
            select=recipe.select,
            patience=recipe.patience,
        )
    return fit(
        model,
        Loader(kept, recipe, seed=seed, soft=soft, audio_on=job.audio_on),
        recipe,
        lr=recipe.rate(model.name),
        seed=seed,
        objective=Objective("strong", distillation_weight=recipe.distillation_weight),
        directory=directory,
        validation=validation,
        watch=watched_clips(kept, sample, job.watch, partial(strong_metrics, median_seconds=job.watch_median_seconds)),
        finish=lambda result: finish(model, result),
        identity={"start": str(start), "clips": len(kept)},
        options=RunOptions(tracking=job.tracking),
    )


def soft_labels(job: TrainJob, clips: ClipSet, inputs: Inputs) -> SoftLabels | None:
    """The soft labels of a training: the ensemble of this run, or a ready-made file, which may lack some of `clips`.

    Prints how many clips a ready-made file has. UserError if it has none.
    """
    path = next(iter(inputs["soft_labels"]), None)
    if path is None:
        return None
    soft = SoftLabels(path, clips.classes, missing_clips=job.missing_clips)
    if job.missing_clips == "labels":
        known = sum(soft.row(name) is not None for name in clips.ids)
        if not known:
            raise UserError(
                f"{path} has soft labels for none of the {len(clips)} training clips, such as {clips.ids[0]!r}; "
                "give a file that was made from AudioSet Strong's training clips"
            )
        if is_main():
            rest = f"the other {len(clips) - known} are trained on labels alone"
            print(f"{path}: soft labels for {known} of {len(clips)} training clips; {rest}", flush=True)
    return soft


def split(clips: ClipSet, share: float, *, seed: int, purpose: str = "validation clips") -> tuple[ClipSet, ClipSet]:
    """Training clips, and the `share` of them that is held out at random."""
    order = numpy_generator(seed, purpose).permutation(len(clips))
    held = round(share * len(clips))
    if share and not 0 < held < len(clips):
        raise UserError(f"a share of {share} of {len(clips)} clips leaves one of the two parts empty; hold out another")
    return clips.select(np.sort(order[held:])), clips.select(np.sort(order[:held]))


def label_loss(
    model: nn.Module, clips: ClipSet, *, batch_size: int, kind: Literal["strong", "weak"] = "strong"
) -> float:
    """Mean loss on the frame (or, "weak", the clip) labels of `clips`, without soft labels."""
    batches = chunks(clips, batch_size)
    return validation_loss(model, batches, objective=Objective(kind), device=default_device())["val/loss"]
