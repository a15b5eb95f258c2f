"""The training loop, top to bottom: a step is in :mod:`framekd.train.step`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from framekd.config import Tracking, TrainRecipe, UserError
from framekd.inference import default_device
from framekd.memory import keep_freed_memory
from framekd.train.log import Log, Meter, trackers
from framekd.train.objectives import Objective
from framekd.train.parallel import World
from framekd.train.parts import allocated, available, device_lost, more_parts, out_of_memory, parts_for
from framekd.train.state import Diverged, Progress, RunFolder, Stopped, digest, finite
from framekd.train.step import Forward, Step
from framekd.train.watch import Best, Validation, WatchedClips


class Batches(Protocol):
    """Training batches, each a pure function of (seed, step)."""

    @property
    def steps(self) -> int: ...

    def batches(self, begin: int, end: int, /, *, device: torch.device, rows: Callable[[int], slice]) -> Any:
        """Batches of steps on `device`, with the tensors of the rows that this process computes."""


@dataclass(frozen=True)
class RunOptions:
    """How a training runs: nothing here changes its result.

    Attributes:
        device: None is the GPU if there is one.
        progress: show a progress bar.
        time_limit: seconds until the run saves its state and ends. Slurm's limit counts in any case.
        save_minutes: minutes between saved states.
        save_steps: steps between saved states, besides.
        until: step after which the state is saved and :func:`fit` returns; called again, it goes on from there.
        tracking: where the history is shown.
        memory: bytes that the training can have; None is what is free on a GPU, and no limit on a CPU.
        clock: called with the name of each part of a step when it is done (for benchmarks).
    """

    device: torch.device | str | None = None
    progress: bool = True
    time_limit: float | None = None
    save_minutes: float = 10.0
    save_steps: int | None = None
    until: int | None = None
    tracking: Tracking | None = None
    memory: int | None = None
    clock: Callable[[str], None] = field(default=lambda part: None)


@dataclass
class Fit:
    """A finished training.

    Attributes:
        history: one flat dict per line of the log.
        steps: optimiser steps.
        kept_step: the step whose weights were kept.
        provenance: device, hours and energy.
        signal: name of a SIGTERM or SIGUSR1 that came after the last step; the next training should not begin.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    kept_step: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    signal: str | None = None


def fit(
    model: Any,
    loader: Batches,
    recipe: TrainRecipe,
    *,
    lr: float,
    seed: int,
    objective: Objective,
    directory: Path | str,
    validation: Validation | None = None,
    watch: WatchedClips | None = None,
    finish: Callable[[Fit], None] | None = None,
    identity: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    options: RunOptions = RunOptions(),
) -> Fit:
    """Train the parameters of `model` that require a gradient, in place.

    The state of the run and its history are in ``directory/.resume`` while it runs. A run that was stopped continues
    from there and ends in the weights of an undisturbed run. At the end ``history.jsonl`` is in `directory`. A run that
    pauses (`options.until`) leaves in `model` the weights that it would keep if it ended there.

    Args:
        model: a :class:`framekd.models.FrameModel`.
        loader: the batches of all steps.
        recipe: optimiser, schedule, augmentation.
        lr: peak learning rate.
        seed: all randomness of the training is derived from it and the step.
        objective: what is minimised.
        directory: where the run keeps its state and leaves its history.
        validation: None for none.
        watch: None for none.
        finish: called with the result before the saved state is removed. Write the checkpoint here: then no kill
            loses the run.
        identity: what else the result depends on (data, start). A saved state of another run is not continued.
        forward: used in place of calling the model.
        options: how it runs.

    Raises:
        Stopped: (exit code 75) after SIGTERM, SIGUSR1 or the time limit, with the state saved.
        Diverged: the loss is not finite; the last good state is kept.
        UserError: another process writes to `directory`.
    """
    device = torch.device(options.device) if options.device is not None else default_device()
    if device.type == "cpu":
        keep_freed_memory()
    directory, world, total = Path(directory), World(), loader.steps
    # How a batch is divided can be changed when the memory was too small; the run goes on.
    about = {"recipe": recipe.model_dump(exclude={"accumulate"}), "lr": lr, "seed": seed, "steps": total}
    about["objective"] = str(objective)
    about["soft"] = getattr(getattr(loader, "soft_source", None), "identity", None)
    about["select"] = (validation.select, validation.patience) if validation else None
    front_end = getattr(getattr(model, "encoder", None), "front_end", None)
    if front_end is not None and front_end.switched:
        about["front_end"] = front_end.switched
    if watch is not None:
        about["watch"] = (watch.every_epochs, watch.clips)
    run = digest(model, about | {"more": identity or {}})
    model.to(device).train()
    step = Step(model, recipe, objective, forward, lr=lr, seed=seed, total=total, world=world, clock=options.clock)
    best = Best(model, validation)

    with RunFolder(directory, run, time_limit=options.time_limit, writes=world.main) as folder, ExitStack() as leaving:
        world.max(0)  # no process reads a state before the writer holds the lock
        done, best.weights = folder.restore(model, step.optimiser, step.average.weights)
        if done.scaler:
            step.scaler.load_state_dict(done.scaler)
        shown = trackers(options.tracking if world.main else None, directory, step=done.step, identity=run, about=about)
        log = Log(folder.folder, done, total=total, device=device, world=world, trackers=shown)
        leaving.callback(log.close)
        meter, saved = Meter(device, world), time.monotonic()
        bar = _bar(directory, done, total, batch_size=recipe.batch_size, show=options.progress and world.main)
        leaving.callback(bar.close)
        epoch = max(1, total // recipe.epochs)

        def scores(function: Callable[[nn.Module], Mapping[str, float]]) -> Mapping[str, float]:
            log.check()
            metrics = world.broadcast(dict(function(model)) if world.main else None)
            model.train()
            return metrics

        def check() -> None:
            if not finite(model):
                raise Diverged(
                    f"the weights are not finite after step {done.step} of {total}; the last good state is kept in "
                    f"{folder.folder}: lower the learning rate"
                )

        def save() -> None:
            check()
            done.scaler = step.scaler.state_dict()
            folder.save(model, step.optimiser, done, average=step.average.weights, best=best.weights)

        def leave(kind: Any, error: BaseException | None, _: Any) -> None:
            """After an exhausted memory, save what is whole and leave as for a time limit, with advice."""
            if isinstance(error, torch.AcceleratorError):  # nothing on the device can be read any more
                raise UserError(device_lost(error, directory, done.step, total, device)) from error
            if not isinstance(error, torch.OutOfMemoryError):
                return
            if world.size == 1:
                log.check()
                meter.read(done)
            kept = world.main and step.whole
            if kept:
                done.parts = more_parts(recipe.batch_size, step.parts)
                save()
            why = out_of_memory(directory, done.step, total, recipe.batch_size, step.parts, device, saved=kept)
            raise (Stopped(why) if world.size == 1 else UserError(why)) from error

        leaving.push(leave)
        before = allocated(device)
        last = total if options.until is None else min(total, options.until)
        batches = loader.batches(done.step, last, device=device, rows=world.rows)
        memory = options.memory or available(device, beside=allocated(device) - before)
        step.parts = max(step.parts, done.parts)
        if memory is not None and forward is None:
            counted = parts_for(memory, model, loader, recipe, objective, processes=world.size) if world.main else 1
            step.parts = world.max(max(step.parts, counted))
        ended = last == total  # unless it only pauses
        for batch in batches:
            loss, rate = step(done.step, batch)
            done.step += 1
            ended = done.step == total
            log.add(done.step - 1, batch.ids, loss, rate=rate, clips=len(batch))
            bar.set_postfix(loss=log.shown, refresh=False)
            bar.update(len(batch))

            if validation is not None and (ended or done.step % (validation.every_epochs * epoch) == 0):
                with step.average.in_place():
                    metrics = scores(validation.function)
                    log.write(done.step, metrics)
                    ended = best.update(metrics, done) or ended
            if watch is not None and (ended or done.step % (watch.every_epochs * epoch) == 0):
                with step.average.in_place():
                    metrics = scores(watch.function)
                log.write(done.step, watch.judge(metrics, step=done.step, total=total))
                if world.main and (warning := watch.warning(metrics, step=done.step, total=total)):
                    print(f"WARNING: {directory} {warning}", flush=True)
            if ended:
                break

            reason = folder.reason_to_leave()
            due = time.monotonic() - saved > 60 * options.save_minutes
            due = due or bool(options.save_steps and done.step % options.save_steps == 0)
            wish = world.max(2 if reason else int(due))  # what one process wants, all do
            if wish:
                log.check()
                meter.read(done)
                save()
                saved = time.monotonic()
            if wish == 2:
                why = reason or "another process leaves"
                raise Stopped(f"{why}; saved after step {done.step} of {total}: {directory}")
            options.clock("log")

        log.check()
        meter.read(done)
        if not ended:
            save()
        step.average.swap()
        kept = best.restore(done)
        check()
        result = Fit(done.history, done.step, kept, meter.provenance(done))
        model.eval()
        if not ended:
            return result
        if world.main:
            log.publish(directory)
            if finish is not None:
                finish(result)
        folder.remove()
        result.signal = folder.signal
    return result


def _bar(directory: Path, done: Progress, total: int, *, batch_size: int, show: bool) -> tqdm:
    """Clips done, rate, loss and time left, on stderr; a line per minute where stderr is a file."""
    return tqdm(
        total=total * batch_size,
        initial=done.step * batch_size,
        unit=" clips",
        unit_scale=True,
        desc=str(directory),
        file=sys.stderr,
        mininterval=1.0 if sys.stderr.isatty() else 60.0,
        disable=not show,
    )
