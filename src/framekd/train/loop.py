"""The training loop, top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from framekd.augment import augment
from framekd.config import Recipe, Tracking, UserError
from framekd.memory import keep_freed_memory
from framekd.optim import build_optimiser, factor, set_rate
from framekd.train.average import Average
from framekd.train.log import Log, Meter
from framekd.train.objectives import Objective, default_forward, resolve
from framekd.train.parallel import World
from framekd.train.seeds import numpy_generator, torch_generator
from framekd.train.state import Progress, RunFolder, Stopped, digest, trained
from framekd.train.trackers import trackers

Forward = Callable[[nn.Module, Tensor, torch.Generator | None], tuple[Tensor, Tensor]]


@dataclass
class Fit:
    """What a training was: history (one flat dict per line logged), steps, hours, the step whose weights are kept."""

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    kept_step: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


def fit(
    model: Any,
    loader: Any,
    recipe: Recipe,
    *,
    lr: float,
    seed: int,
    directory: Path | str,
    objective: str | Objective = "strong",
    steps: int | None = None,
    validation: Callable[[nn.Module], Mapping[str, float]] | None = None,
    forward: Forward = default_forward,
    depth_groups: Sequence[Sequence[str]] | None = None,
    finish: Callable[[Fit], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    time_limit: float | None = None,
    save_minutes: float = 10.0,
    save_steps: int | None = None,
    tracking: Tracking | None = None,
    clock: Callable[[str], None] | None = None,
) -> Fit:
    """Train the parameters of `model` that require a gradient, in place, and return what happened.

    loader: ``.batches(start, stop)`` yields the batches of those steps, each a pure function of (seed, step), with
        ``ids``, ``waveform`` [batch, samples], the labels that the objective needs, and ``.to(device)``.
    lr: peak learning rate. steps: optimiser steps, instead of ``recipe.steps()``.
    objective: "strong", "weak", "both", or a function (:data:`framekd.train.objectives.Objective`) of logits.
    validation: called every ``recipe.validate_epochs`` and at the end; gives metrics such as ``{"val/loss": 0.1}``.
    forward: instead of calling the model; ``forward(model, mel, generator) -> (frame logits, clip logits)``.
    depth_groups: parameter names by depth for ``recipe.layer_decay``; None asks the model.
    finish: called with the result before the state is removed: write the checkpoint here, and no kill loses the run.
    identity: what else makes the run what it is (data, ensemble); a state of another run is not continued.
    tracking: where the history is shown besides.
    clock: called with the name of each part of a step after it (benchmarks).
    time_limit: seconds until the run saves and leaves; Slurm's own limit is respected anyway.

    While it runs, state and ``history.jsonl`` are in ``directory/.resume``; in the end the history is in `directory`.
    Raises :class:`Stopped` (exit code 75) after SIGTERM, SIGUSR1 or the time limit, with the state saved;
    :class:`Diverged` when the loss is no number, with the last good state kept; UserError for a second writer.
    """
    device = torch.device(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_freed_memory()
    directory, world, compute = Path(directory), World(), resolve(objective)
    total = recipe.steps() if steps is None else steps
    validate_every = recipe.validate_epochs * max(1, total // recipe.epochs)
    if recipe.select == "best_loss" and validation is None:
        raise UserError("select: best_loss needs a validation; write select: last")
    about = {"recipe": recipe.model_dump(), "lr": lr, "seed": seed, "steps": total, "objective": _name(objective)}
    about["soft"] = getattr(getattr(loader, "soft_source", None), "identity", None)
    run = digest(model, about | {"more": identity or {}})
    model.to(device).train()
    optimiser = build_optimiser(model, recipe, lr=lr, depth_groups=_groups(model, recipe, depth_groups))
    average = Average(model, recipe.ema)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision) if device.type == "cuda" else None
    scaler: Any = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    if recipe.compile:
        model.compile_blocks() if hasattr(model, "compile_blocks") else model.compile()
    call = world.wrap(_Call(model, forward), device)
    mark = clock or (lambda part: None)

    with RunFolder(directory, run, time_limit=time_limit, writes=world.main) as folder, ExitStack() as leaving:
        world.most(0)  # nobody reads a state before the writer holds the lock
        done, best = folder.restore(model, optimiser, average.weights)
        if done.scaler:
            scaler.load_state_dict(done.scaler)
        shown = trackers(tracking if world.main else None, directory, step=done.step, identity=run, about=about)
        log = Log(folder.folder, done, total=total, device=device, world=world, trackers=shown)
        leaving.callback(log.close)
        meter, saved = Meter(device, world), time.monotonic()
        bar = _bar(directory, done, total, batch_size=recipe.batch_size, show=progress and world.main)

        for batch in loader.batches(done.step, total):
            step, size = done.step, len(batch.waveform)
            batch = batch.to(device)
            rate = factor(step, recipe, total=total, peak=lr)
            set_rate(optimiser, rate)
            rows = world.rows(size)
            mark("data")

            with torch.no_grad():
                mel = model.frontend(batch.waveform[rows], generator=torch_generator(seed, "frontend", step))
                mark("frontend")
                draws = numpy_generator(seed, "augment", step)
                mel, batch = augment(world.gather(mel, size), batch, recipe.augment, generator=draws)
                mark("augment")

            loss = torch.zeros((), device=device)
            parts = _parts(rows, recipe.accumulate)
            for i, part in enumerate(parts):
                noise = torch_generator(seed, "model", step, world.rank, i)
                with world.last(call, i == len(parts) - 1):
                    with torch.autocast(device.type, half, half is not None):
                        frames, clips = call(mel[part], noise)
                    share = (part.stop - part.start) * world.size / size
                    value = share * compute(frames.float(), clips.float(), batch, part, recipe)
                    mark("forward")
                    scaler.scale(value).backward()
                    mark("backward")
                loss += value.detach()

            if recipe.clip_gradient is not None:
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_gradient)
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
            average.update()
            mark("optimiser")

            done.step = step + 1
            ended = done.step == total
            log.add(step, batch.ids, loss, rate=rate * lr, clips=size)
            bar.set_postfix(loss=log.shown, refresh=False)
            bar.update(size)

            if validation is not None and (ended or done.step % validate_every == 0):
                log.check()
                with average.in_place():
                    metrics = world.share(dict(validation(model)) if world.main else None)
                    model.train()
                    log.write(done.step, metrics)
                    best = _judge(metrics, done, best, model, recipe)
                ended = ended or (recipe.patience is not None and done.worse >= recipe.patience)
            if ended:
                break

            reason = folder.reason_to_leave()
            due = time.monotonic() - saved > 60 * save_minutes or (save_steps and done.step % save_steps == 0)
            wish = world.most(2 if reason else int(bool(due)))
            if wish:
                log.check()
                meter.read(done)
                done.scaler = scaler.state_dict()
                folder.save(model, optimiser, done, average=average.weights, best=best)
                saved = time.monotonic()
            if wish == 2:
                bar.close()
                raise Stopped(
                    f"{reason or 'another process leaves'}; saved after step {done.step} of {total}: {directory}"
                )
            mark("log")

        log.check()
        bar.close()
        meter.read(done)
        average.swap()
        if best is not None:
            for name, value in trained(model).items():
                value.data.copy_(best[name])
        kept = done.step if best is None else (done.best_step or 0)
        result = Fit(done.history, done.step, kept, meter.provenance(done))
        model.eval()
        if world.main:
            log.publish(directory)
            if finish is not None:
                finish(result)
        folder.remove()
    return result


class _Call(nn.Module):
    """The model behind one `forward`, so that DistributedDataParallel sees every use of its parameters."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.via = model, forward

    def forward(self, mel: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.via(self.model, mel, generator)


def _groups(model: Any, recipe: Recipe, given: Sequence[Sequence[str]] | None) -> Sequence[Sequence[str]] | None:
    if given is None and recipe.layer_decay < 1 and hasattr(model, "depth_groups"):
        return model.depth_groups()
    return given


def _name(objective: str | Objective) -> str:
    return objective if isinstance(objective, str) else getattr(objective, "__qualname__", "")


def _parts(rows: slice, parts: int) -> list[slice]:
    """The rows in at most `parts` pieces, equal but for the last."""
    each = -(-(rows.stop - rows.start) // parts)
    return [slice(start, min(rows.stop, start + each)) for start in range(rows.start, rows.stop, each)]


def _bar(directory: Path, done: Progress, total: int, *, batch_size: int, show: bool) -> tqdm:
    """Steps done, rate, loss and time left, on stderr; a line a minute where stderr is a file."""
    interval = 1.0 if sys.stderr.isatty() else 60.0
    counts = {"total": total * batch_size, "initial": done.step * batch_size}
    return tqdm(
        **counts,
        unit=" clips",
        unit_scale=True,
        desc=str(directory),
        file=sys.stderr,
        mininterval=interval,
        disable=not show,
    )


def _judge(
    metrics: Mapping[str, float], done: Progress, best: dict[str, Tensor] | None, model: nn.Module, recipe: Recipe
) -> dict[str, Tensor] | None:
    """Keep the weights of the lowest validation loss, and count validations without a better one."""
    if recipe.select != "best_loss" and recipe.patience is None:
        return best
    if "val/loss" not in metrics:
        raise UserError("select: best_loss needs a validation that gives val/loss")
    if done.best is not None and metrics["val/loss"] >= done.best:
        done.worse += 1
        return best
    done.best, done.best_step, done.worse = metrics["val/loss"], done.step, 0
    if recipe.select != "best_loss":
        return best
    return {name: value.detach().to("cpu", copy=True) for name, value in trained(model).items()}
