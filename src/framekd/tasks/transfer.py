"""Train and score one task from one checkpoint: heads on the frozen transformer, and fine-tuning of the whole model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from framekd.checkpoints import load_encoder, read_spec
from framekd.config import OwnTask, Task, TrainRecipe, UserError
from framekd.data import Loader, MixedLoader, windows
from framekd.files import sha256_of, write_json, write_text
from framekd.inference import batch_logits, default_device
from framekd.models import FrameModel, build_model, switches
from framekd.tasks import desed, frozen, hear, own
from framekd.tasks.problem import Part, Problem, Run, join_crops, share_of
from framekd.train import Objective, RunOptions, fit, torch_generator

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
        One row per mode and run (seed or fold): task, model, checkpoint, mode, seed, value (0..1; DESED: PSDS1 with
        variance penalty, the others: onset F-measure at 50 ms), and further metrics.
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
    if CONSTANT in modes:
        guesses = [(one.name, problem.score(problem.constant(one))) for one in problem.runs]
        rows += [{**about, "mode": CONSTANT, "seed": name, **scores} for name, scores in guesses]
    if "frozen" in modes:
        found = score_frozen(encoder(), problem, options, device=place, progress=progress)
        rows += [{**about, "mode": "frozen", "seed": one.name, **scores} for one, scores in zip(problem.runs, found)]
    if "finetune" in modes:
        identity = _identity(options, checkpoint_dir)
        for one in problem.runs:
            kept = work / f"{one.name}.json"
            scores = _kept(kept, identity)
            if scores is None:
                model = with_heads(encoder(), problem, one, options.finetune)
                train(model, problem, one, options.finetune, directory=work / one.name, device=place, progress=progress)
                scores = problem.score(predict(model, problem, one.test, options.finetune, device=place))
                write_json(kept, {"identity": identity, "metrics": scores})
            rows.append({**about, "mode": "finetune", "seed": one.name, **scores})
    table = pd.DataFrame(rows)
    write_text(out_csv, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    shutil.rmtree(work, ignore_errors=True)
    return table


def score_frozen(
    model: FrameModel, problem: Problem, options: Task, *, device: torch.device, progress: bool = False
) -> list[dict[str, float]]:
    """Metrics of each run with heads trained on the frozen encoder of `model`; the heads of `model` are not used."""
    recipe = options.frozen
    crops = frozen.compute(model, problem, recipe, device=device)
    rate = recipe.rate(model.name)
    fresh = frozen.FreshCrops(model, problem, recipe, device=device) if recipe.random_crop == "fresh" else None
    heads = frozen.train(
        crops, problem, recipe, lr=rate, head=options.head, device=device, progress=progress, fresh=fresh
    )
    found = frozen.predict(heads, crops, problem, batch_size=recipe.batch_size, device=device)
    return [problem.score(predictions) for predictions in found]


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
    progress: bool = False,
) -> FrameModel:
    """Fine-tune `model` in place; `directory` keeps the state of an interrupted training."""
    loader = loader_of(problem, one, recipe)
    fit(
        model,
        loader,
        recipe,
        lr=recipe.rate(model.name),
        seed=one.seed,
        objective=Objective(problem.objective),
        directory=directory,
        identity={"task": problem.task, "run": one.name, "clips": len(problem.pools)},
        options=RunOptions(device=device, progress=progress),
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


def _kept(path: Path, identity: str) -> dict[str, float] | None:
    """The metrics of a finished run, if `path` exists and belongs to this identity."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["metrics"] if content["identity"] == identity else None
