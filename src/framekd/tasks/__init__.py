"""The downstream tasks of Table II: DESED, DCASE 2016 Task 2 and MAESTRO, frozen and fine-tuned (Sec. 4).

A task is a module with ``load(root, options, seeds=…) -> Problem``; the machinery does the rest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from framekd.checkpoints import load_encoder
from framekd.config import Task, UserError
from framekd.models import FrameModel, build_model
from framekd.tasks import dcase16, desed, finetune, frozen, maestro
from framekd.tasks.problem import Problem, Run
from framekd.train import torch_generator

TASKS = {"DESED": desed.load, "DC16-T2": dcase16.load, "MAESTRO": maestro.load}
MODES = ("frozen", "finetune")

__all__ = ["MODES", "TASKS", "Problem", "load", "run"]


def load(
    task: str, options: Task, *, data_dir: str | Path | None = None, seeds: Sequence[int] | None = None
) -> Problem:
    """The data of a task; `data_dir` and `seeds` stand in for those of `options`."""
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    root = Path(data_dir or options.data)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder with the data of {task}; write downstream: {{{task}: {{data: …}}}}")
    return TASKS[task](root, options, seeds=list(seeds or options.seeds))


def run(
    task: str,
    options: Task,
    model_name: str,
    checkpoint_dir: str | Path,
    *,
    checkpoint: str,
    out_csv: str | Path,
    modes: Sequence[str] = MODES,
    seeds: Sequence[int] | None = None,
    data_dir: str | Path | None = None,
    sizes: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Train and score one task from one checkpoint in all `modes`; one row a mode and run (seed or fold).

    Columns task, model, checkpoint, mode, seed, value (0..1: DESED PSDS1 with variance penalty; the others onset F at
    50 ms), then further metrics. `checkpoint` names what `checkpoint_dir` is: step1, step2 or full. `sizes` overrides
    the paper's, as in training. Runs that are finished are kept beside `out_csv` until the whole is, so that an
    interrupted job goes on where it was.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise UserError(f"modes: {unknown[0]!r} is none of {', '.join(MODES)}")
    place = torch.device(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
    problem = load(task, options, data_dir=data_dir, seeds=seeds)
    out_csv = Path(out_csv)
    work = out_csv.parent / f".{out_csv.stem}.work"

    def fresh(one: Run) -> FrameModel:
        model = build_model(model_name, n_classes=len(problem.classes), head=options.head, sizes=sizes)
        load_encoder(model, checkpoint_dir)
        std = 0.01 if options.finetune.head_init == "normal" else None
        model.new_heads(generator=torch_generator(one.seed, "heads"), std=std)
        if options.finetune.head_init == "prior":
            model.frame_head.bias.data.copy_(torch.from_numpy(problem.log_odds(one)))
        return model

    head = {"task": task, "model": model_name, "checkpoint": checkpoint}
    rows: list[dict[str, Any]] = []
    if "frozen" in modes:
        for one, metrics in zip(problem.runs, _frozen(fresh(problem.runs[0]), problem, options, place, progress)):
            rows.append({**head, "mode": "frozen", "seed": one.name, **metrics})
    if "finetune" in modes:
        start = _identity(options, checkpoint_dir)
        for one in problem.runs:
            kept = work / f"{one.name}.json"
            metrics = _kept(kept, start) or _finetuned(
                fresh(one), problem, one, options, place, work / one.name, progress
            )
            _keep(kept, start, metrics)
            rows.append({**head, "mode": "finetune", "seed": one.name, **metrics})
    frame = pd.DataFrame(rows)
    _write(out_csv, frame)
    shutil.rmtree(work, ignore_errors=True)
    return frame


def _frozen(
    model: FrameModel, problem: Problem, options: Task, device: torch.device, progress: bool
) -> list[dict[str, float]]:
    recipe = options.frozen
    crops = frozen.compute(model, problem, recipe, device=device)
    rate = recipe.rate(model.name)
    heads = frozen.train(crops, problem, recipe, lr=rate, head=options.head, device=device, progress=progress)
    found = frozen.predict(heads, crops, problem, device=device, batch_size=recipe.batch_size)
    return [problem.score(predictions) for predictions in found]


def _finetuned(
    model: FrameModel, problem: Problem, one: Run, options: Task, device: torch.device, work: Path, progress: bool
) -> dict[str, float]:
    recipe = options.finetune
    rate = recipe.rate(model.name)
    finetune.train(model, problem, one, recipe, lr=rate, directory=work, device=device, progress=progress)
    found = finetune.predict(model, problem, one.test, batch_size=recipe.batch_size, device=device, options=options)
    return problem.score(found)


def _identity(options: Task, checkpoint_dir: str | Path) -> str:
    """What a finished run belongs to: the task's options and the weights that it started from."""
    hasher = hashlib.blake2b(options.model_dump_json().encode(), digest_size=16)
    with (Path(checkpoint_dir) / "model.safetensors").open("rb") as file:
        hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()


def _kept(path: Path, identity: str) -> dict[str, float] | None:
    """The metrics of a run that an interrupted job had finished, if they belong to this one."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return content["metrics"] if content["identity"] == identity else None


def _keep(path: Path, identity: str, metrics: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps({"identity": identity, "metrics": metrics}))
    aside.replace(path)


def _write(path: Path, frame: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    aside.replace(path)
