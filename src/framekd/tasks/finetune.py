"""Fine-tuning: everything trains, by the training loop that all stages share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from framekd.config import Recipe, Task, UserError
from framekd.data import Loader, MixedLoader, windows
from framekd.events import CLIP_FRAMES
from framekd.models import FrameModel
from framekd.predict import HOP, logits
from framekd.tasks.problem import Part, Problem, Run
from framekd.train import fit


def loader_of(problem: Problem, run: Run, recipe: Recipe) -> Loader | MixedLoader:
    """Batches of a run: random 10-s cuts; of several parts, equally many each."""
    parts = len(run.train)
    if recipe.batch_size % parts:
        raise UserError(f"batch_size: {recipe.batch_size} cannot be cut into {parts} equal parts; write an even number")
    share = recipe.model_copy(
        update={"batch_size": recipe.batch_size // parts, "epoch_clips": max(1, recipe.epoch_clips // parts)}
    )
    loaders = [
        Loader(problem.pools[part.pool].select(part.clips), share, seed=run.seed + 1_000_003 * i)
        for i, part in enumerate(run.train)
    ]
    return loaders[0] if parts == 1 else MixedLoader(loaders)


def train(
    model: FrameModel,
    problem: Problem,
    run: Run,
    recipe: Recipe,
    *,
    lr: float,
    directory: Path,
    device: torch.device,
    progress: bool = False,
) -> FrameModel:
    """Train `model` (which has the task's heads) in place; `directory` keeps the state of an interrupted training."""
    loader = loader_of(problem, run, recipe)
    fit(
        model,
        loader,
        recipe,
        lr=lr,
        seed=run.seed,
        directory=directory,
        objective=problem.objective,
        steps=recipe.epochs * loader.steps_per_epoch,
        identity={"task": problem.task, "run": run.name, "clips": len(problem.pools)},
        device=device,
        progress=progress,
    )
    return model


@torch.no_grad()
def predict(
    model: FrameModel, problem: Problem, part: Part, *, batch_size: int, device: torch.device, options: Task
) -> dict[str, np.ndarray]:
    """Probabilities of a part's clips, from successive 10-s cuts: {clip: [frames, classes]}."""
    pool = problem.pools[part.pool].select(part.clips)
    model.to(device).eval()
    out: dict[str, list[np.ndarray]] = {name: [] for name in pool.ids}
    for batch in windows(pool, batch_size):
        frames, _ = logits(model, batch.to(device).waveform, precision=options.finetune.precision)
        for name, values in zip(batch.ids, frames.sigmoid().transpose(1, 2).cpu().numpy()):
            out[name].append(values)
    ends = np.maximum(-(-pool.samples // HOP), CLIP_FRAMES)
    return {name: np.concatenate(out[name])[:end] for name, end in zip(pool.ids, ends.tolist())}
