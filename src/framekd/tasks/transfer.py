"""Train and score one task from one checkpoint: heads on the frozen transformer, and fine-tuning of the whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from framekd.checkpoints import load_encoder, read_spec
from framekd.config import OwnTask, Task, TrainRecipe, UserError
from framekd.data import Loader, MixedLoader, windows
from framekd.files import sha256_of, write_json, write_text
from framekd.inference import batch_logits, default_device
from framekd.models import FrameModel, build_model, switches
from framekd.rates import DROPPED, choose
from framekd.tasks import desed, frozen, hear, own
from framekd.tasks.choices import Kept, Scores, choice_of, rate_columns, rates_of, result_of
from framekd.tasks.halving import halve
from framekd.tasks.problem import Part, Problem, Run, join_crops, share_of
from framekd.train import Diverged, Objective, RunOptions, Validation, fit, torch_generator, validation_loss

TASKS = {"DESED": desed.load, "DC16-T2": hear.load_dcase16, "MAESTRO": hear.load_maestro}
MODES = ("frozen", "finetune")
CONSTANT = "constant"
"""A guess that needs no model: see :meth:`Problem.constant`."""


def load(task: str, options: Task) -> Problem:
    """Read the data of a task from the folder `options.data`.

    Raises:
        UserError: there is no such task or folder, or the data are not in the layout of the task.
    """
    if task not in TASKS and not isinstance(options, OwnTask):
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    root = Path(options.data)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder with the data of {task}; correct the key `data` of the task")
    return own.load(task, root, options) if isinstance(options, OwnTask) else TASKS[task](root, options)


def run(
    task: str,
    options: Task,
    model_name: str,
    checkpoint_dir: str | Path,
    *,
    checkpoint: str,
    out_csv: str | Path,
    modes: Sequence[str] = MODES,
    sizes: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train and score one task from one checkpoint in all `modes`.

    Finished fine-tuning runs are kept beside `out_csv` until it is written, so an interrupted job continues with the
    first unfinished run.

    Args:
        task: "DESED", "DC16-T2", "MAESTRO", or the name of a further task, whose options are an `OwnTask`.
        checkpoint_dir: checkpoint directory whose encoder is used.
        checkpoint: name of this checkpoint in the table: "untrained", "step1", "step2" or "full".
        out_csv: where the table is written.
        modes: any of "frozen", "finetune" and "constant" (a constant guess, which does not use the model).
        sizes: model sizes that differ from the paper's.
        device: the GPU if there is one, unless given.
    Returns:
        One row per mode and run (seed or fold): task, model, checkpoint, mode, seed, learning_rate, rates_tried (1: it
        was given), value (0..1; DESED: PSDS1 with variance penalty, the others: onset F-measure at 50 ms), and further
        metrics. `candidates_file(out_csv)` has what the rates were worth on validation clips.
    Raises:
        UserError: unknown task or mode, or data that cannot be read.
    """
    unknown = [mode for mode in modes if mode not in (*MODES, CONSTANT)]
    if unknown:
        raise UserError(f"modes: {unknown[0]!r} is none of {', '.join((*MODES, CONSTANT))}")
    place = default_device() if device is None else torch.device(device)
    problem, out_csv = load(task, options), Path(out_csv)
    work = out_csv.parent / f".{out_csv.stem}.work"

    front_end = switches(read_spec(checkpoint_dir))

    def encoder() -> FrameModel:
        classes = len(problem.classes)
        model = build_model(model_name, n_classes=classes, head=options.head, sizes=sizes, front_end=front_end)
        load_encoder(model, checkpoint_dir)
        return model

    about = {"task": task, "model": model_name, "checkpoint": checkpoint}
    rows: list[dict[str, Any]] = []
    choices: list[dict[str, Any]] = []

    def add(mode: str, found: Sequence[Scores], chosen: Sequence[Mapping[str, Any]] = ()) -> None:
        pairs = zip(problem.runs, found, strict=True)
        rows.extend({**about, "mode": mode, "seed": one.name, **scores} for one, scores in pairs)
        choices.extend({"mode": mode, **choice} for choice in chosen)

    if CONSTANT in modes:
        add(CONSTANT, [problem.score(problem.constant(one)) for one in problem.runs])
    if "frozen" in modes:
        add("frozen", *score_frozen(encoder(), problem, options, device=place, progress=progress))
    if "finetune" in modes:
        kept = Kept(work, _identity(options, checkpoint_dir))
        add("finetune", *score_finetuned(encoder, problem, options, kept=kept, device=place, progress=progress))
    table = pd.DataFrame(rows)
    write_json(candidates_file(out_csv), choices)
    write_text(out_csv, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    shutil.rmtree(work, ignore_errors=True)
    return table


def candidates_file(out_csv: str | Path) -> Path:
    """Where the rates that were tried are written: beside the table."""
    return Path(out_csv).with_suffix(".candidates.json")


def score_frozen(
    model: FrameModel, problem: Problem, options: Task, *, device: torch.device, progress: bool = False
) -> tuple[list[Scores], list[dict[str, Any]]]:
    """Train heads on the frozen encoder of `model`, whose own heads are not used.

    The heads of all rates and runs are trained together. Runs with the same validation clips get the rate with the best
    mean on these, and only its heads see test clips.

    Returns:
        The metrics of each run, and the choice of each group of runs.
    """
    recipe, runs = options.frozen, problem.runs
    crops = frozen.compute(model, problem, recipe, device=device)
    rates, searched = rates_of(options, "frozen", model.name)
    fresh = frozen.FreshCrops(model, problem, recipe, device=device) if recipe.random_crop == "fresh" else None
    how: dict[str, Any] = dict(head=options.head, device=device, progress=progress, fresh=fresh, select=options.select)
    trained: Sequence[frozen.Heads | int]
    if searched:
        trained = frozen.train_rates(crops, problem, recipe, rates=rates, **how)
    else:
        trained = [frozen.train(crops, problem, recipe, lr=rates[0], **how)]

    def predicted(heads: frozen.Heads | int, i: int, part: Part) -> dict[str, np.ndarray]:
        assert not isinstance(heads, int)
        return frozen.predict_part(heads, i, part, crops, problem, batch_size=recipe.batch_size, device=device)

    def tried(rate: float, heads: frozen.Heads | int, group: Sequence[int]) -> dict[str, Any]:
        if isinstance(heads, int):
            return result_of(rate, diverged=f"the loss is not finite at step {heads}")
        if not all(bool(value.isfinite().all()) for value in heads.parameters()):
            return result_of(rate, diverged="the weights are not finite after the last step")
        assert problem.judge is not None
        values = [problem.judge([predicted(heads, i, part) for part in runs[i].valid]) for i in group]
        return result_of(rate, value=sum(values) / len(values))

    metrics: dict[int, Scores] = {}
    choices = []
    for group in problem.judged_together():
        results = [result_of(rates[0])]
        if searched:
            results = [tried(rate, heads, group) for rate, heads in zip(rates, trained)]
        best = choose(results, criterion="value", key="frozen") if searched else results[0]
        heads = trained[rates.index(best["learning_rate"])]
        for i in group:
            scores = problem.scores(runs[i], partial(predicted, heads, i))
            metrics[i] = {**rate_columns(best["learning_rate"], results), **scores}
        choices.append(choice_of(problem, group, best, results, judged=len(group) if searched else 0))
    return [metrics[i] for i in range(len(runs))], choices


def score_finetuned(
    encoder: Callable[[], FrameModel],
    problem: Problem,
    options: Task,
    *,
    kept: Kept,
    device: torch.device,
    progress: bool = False,
) -> tuple[list[Scores], list[dict[str, Any]]]:
    """Fine-tune a model for each run.

    Of runs with the same validation clips, the first is trained at every rate of a search (with `search.halving`, only
    the best of them to the end). It keeps the best of these trainings, and the others are trained at its rate.

    Args:
        encoder: gives a new model with the weights of the checkpoint.
        kept: finished trainings, and the state of one that was interrupted.
    Returns:
        As :func:`score_frozen`.
    """
    name, recipe = encoder().name, options.finetune
    rates, searched = rates_of(options, "finetune", name)

    def folder(one: Run, rate: float) -> Path:
        return kept.folder / f"{one.name}-{rate!r}"

    def trained(
        one: Run, rate: float, before: Sequence[Mapping[str, Any]] | None, epochs: int | None = None
    ) -> Mapping[str, Any]:
        """A training, whole or its first `epochs`.

        One that was judged is scored on test clips only at its end, and if no rate before it has a better value.
        """
        directory = folder(one, rate)
        label = directory.name if epochs is None else f"{directory.name}-epoch{epochs}"
        if (found := kept.read(label)) is not None:
            return found
        result = result_of(rate)
        model = with_heads(encoder(), problem, one, recipe)
        how: dict[str, Any] = dict(directory=directory, device=device, progress=progress, epochs=epochs)
        try:
            train(model, problem, one, recipe, lr=rate, select=options.select, **how)
        except Diverged as error:
            if before is None:
                raise
            result = result_of(rate, diverged=str(error).split(";")[0])
            shutil.rmtree(directory)
        else:
            if before is not None:
                assert problem.judge is not None
                judged = [predict(model, problem, part, recipe, device=device) for part in one.valid]
                result = result_of(rate, value=problem.judge(judged))
            best = result["value"] is not None and choose([*(before or ()), result], criterion="value") is result
            if epochs is None and (best or before is None):
                test = partial(predict, model, problem, recipe=recipe, device=device)
                result["metrics"] = problem.scores(one, test)
        kept.write(label, result)
        return result

    metrics: dict[int, Scores] = {}
    choices = []
    for group in problem.judged_together():
        first, left = problem.runs[group[0]], rates
        results: list[Mapping[str, Any]] = []
        lost: list[Mapping[str, Any]] = []
        if searched and (rounds := options.search.rounds(recipe.epochs)):
            left, lost = halve(rates, rounds, recipe.epochs, partial(trained, first, before=[]))
            for one in lost:
                shutil.rmtree(folder(first, one["learning_rate"]), ignore_errors=True)
        for rate in left:
            results.append(trained(first, rate, results if searched else None))
        whole = [*results, *(one for one in lost if DROPPED not in one)]
        best = choose(whole, criterion="value", key="finetune") if searched else results[0]
        rate = best["learning_rate"]
        for i in group:
            scores = best["metrics"] if i == group[0] else trained(problem.runs[i], rate, None)["metrics"]
            metrics[i] = {**rate_columns(rate, [*results, *lost]), **scores}
        choices.append(choice_of(problem, group, best, [*results, *lost], judged=1 if searched else 0))
    return [metrics[i] for i in range(len(problem.runs))], choices


def with_heads(model: FrameModel, problem: Problem, one: Run, recipe: TrainRecipe) -> FrameModel:
    """Give `model` new heads as `recipe.head_init` says, drawn from the seed of the run; returns the model."""
    std = 0.01 if recipe.head_init == "normal" else None
    model.new_heads(generator=torch_generator(one.seed, "heads"), std=std)
    if recipe.head_init == "prior":
        model.frame_head.bias.data.copy_(torch.from_numpy(problem.log_odds(one)))
    return model


def loader_of(problem: Problem, one: Run, recipe: TrainRecipe) -> Loader | MixedLoader:
    """Training batches of a run: random 10-s crops, the same number from each of its parts."""
    share = share_of(recipe, len(one.train))
    loaders = [
        Loader(problem.pools[part.pool].select(part.clips), share, seed=one.seed + 1_000_003 * i)
        for i, part in enumerate(one.train)
    ]
    return loaders[0] if len(loaders) == 1 else MixedLoader(loaders)


def train(
    model: FrameModel,
    problem: Problem,
    one: Run,
    recipe: TrainRecipe,
    *,
    directory: Path,
    device: torch.device,
    lr: float | None = None,
    select: Literal["last", "best"] = "last",
    epochs: int | None = None,
    progress: bool = False,
) -> FrameModel:
    """Fine-tune `model` in place at the rate `lr`, or that of the recipe, to the end or so many `epochs` of it.

    `directory` keeps the state of a training that was interrupted or is to go on.
    """
    loader = loader_of(problem, one, recipe)
    until = None if epochs is None else epochs * (loader.steps // recipe.epochs)

    def losses(trained: nn.Module) -> dict[str, float]:
        total = 0.0
        for part, kind in zip(one.valid, problem.kinds(), strict=True):
            batches = windows(problem.pools[part.pool].select(part.clips), recipe.batch_size)
            total += validation_loss(trained, batches, objective=Objective(kind), device=device)["val/loss"]
        return {"val/loss": total}

    fit(
        model,
        loader,
        recipe,
        lr=recipe.rate(model.name) if lr is None else lr,
        seed=one.seed,
        objective=Objective(problem.objective),
        directory=directory,
        validation=Validation(losses, every_epochs=1, select="best_loss") if select == "best" else None,
        identity={"task": problem.task, "run": one.name, "clips": [part.clips.tolist() for part in one.train]},
        options=RunOptions(device=device, progress=progress, until=until),
    )
    return model


def predict(
    model: FrameModel, problem: Problem, part: Part, recipe: TrainRecipe, *, device: torch.device
) -> dict[str, np.ndarray]:
    """Probabilities of the clips of a part, from successive 10-s crops: {clip: [frames, classes]}."""
    pool = problem.pools[part.pool].select(part.clips)
    crops: dict[str, list[np.ndarray]] = {name: [] for name in pool.ids}
    batches = windows(pool, recipe.batch_size)
    for batch, [(frames, _)] in batch_logits([model], batches, device=device, precision=recipe.precision):
        for name, values in zip(batch.ids, frames.sigmoid().transpose(1, 2).cpu().numpy()):
            crops[name].append(values)
    return {name: join_crops(np.stack(crops[name]), n) for name, n in zip(pool.ids, pool.samples.tolist())}


def _identity(options: Task, checkpoint_dir: str | Path) -> str:
    """What a finished run depends on: the options of the task and the weights that it started from."""
    front_end = switches(read_spec(checkpoint_dir))
    text = options.model_dump_json() + sha256_of(Path(checkpoint_dir) / "model.safetensors") + json.dumps(front_end)
    return hashlib.sha256(text.encode()).hexdigest()
