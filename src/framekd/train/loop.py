"""The training loop, top to bottom."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from framekd.augment import augment
from framekd.config import Tracking, TrainRecipe, UserError
from framekd.data import Batch
from framekd.inference import HALF, default_device
from framekd.memory import keep_freed_memory
from framekd.optim import build_optimiser, factor, set_rate
from framekd.train.log import Log, Meter, trackers
from framekd.train.objectives import Objective
from framekd.train.parallel import World
from framekd.train.parts import allocated, available, more_parts, out_of_memory, parts_for
from framekd.train.seeds import numpy_generator, torch_generator
from framekd.train.state import Average, Diverged, Progress, RunFolder, Stopped, digest, finite, trained

Forward = Callable[[nn.Module, Tensor, torch.Generator | None], tuple[Tensor, Tensor]]
"""``forward(model, mel, generator)``: frame logits [batch, classes, frames] and clip logits [batch, classes].

The parts of a batch get equal generators.
"""


BETTER = 0.98
"""A model has learnt something if its loss is under this share of the loss of constant predictions."""


class Batches(Protocol):
    """Training batches, each a pure function of (seed, step)."""

    @property
    def steps(self) -> int: ...

    def batches(self, begin: int, end: int, /, *, device: torch.device, rows: Callable[[int], slice]) -> Any:
        """Batches of steps on `device`, with the tensors of the rows that this process computes."""


@dataclass(frozen=True)
class Validation:
    """Validation during a training.

    Attributes:
        function: gives metrics of a model, such as ``{"val/loss": 0.1}``.
        every_epochs: epochs between validations; there is one at the end too.
        select: which weights are kept: the last, or those of the lowest val/loss.
        patience: validations without a lower val/loss after which the training ends; None is never.
    """

    function: Callable[[nn.Module], Mapping[str, float]]
    every_epochs: int = 5
    select: Literal["last", "best_loss"] = "last"
    patience: int | None = None


@dataclass(frozen=True)
class WatchedClips:
    """Scores of a training while it runs, on clips that are held out of it. They do not decide which weights are kept.

    Attributes:
        function: gives metrics of a model: ``watch/loss``, and ``watch/psds1`` or ``watch/map``.
        every_epochs: epochs between scorings; there is one at the end too.
        constant_loss: watch/loss of constant predictions, the classes' log odds.
        learnt_by: share of the steps after which a model that is no better than these has learnt nothing.
        clips: how many are scored.
    """

    function: Callable[[nn.Module], Mapping[str, float]]
    every_epochs: int = 5
    constant_loss: float = math.inf
    learnt_by: float = 0.3
    clips: int = 0

    def judge(self, metrics: Mapping[str, float], *, step: int, total: int) -> dict[str, float]:
        """The metrics, with ``watch/learnt`` (1 or 0) once enough steps are done."""
        if step < self.learnt_by * total:
            return dict(metrics)
        return {**metrics, "watch/learnt": float(self.warning(metrics, step=step, total=total) is None)}

    def warning(self, metrics: Mapping[str, float], *, step: int, total: int) -> str | None:
        """What to say of a model that has learnt nothing although enough steps are done."""
        loss = metrics.get("watch/loss", math.nan)
        if step < self.learnt_by * total or (loss < BETTER * self.constant_loss and metrics.get("watch/psds1") != 0):
            return None
        why = f"the loss is {loss:.4g}, that of constant predictions {self.constant_loss:.4g}"
        if "watch/psds1" in metrics:
            why += f"; PSDS1 is {metrics['watch/psds1']:.3g}"
        return (
            f"has learnt nothing after {step:,} of {total:,} steps: on {self.clips} clips held out, {why}. "
            "Look at its learning rate and at its data."
        )


@dataclass(frozen=True)
class RunOptions:
    """How a training runs: nothing here changes its result.

    Attributes:
        device: None is the GPU if there is one.
        progress: show a progress bar.
        time_limit: seconds until the run saves its state and ends. Slurm's limit counts in any case.
        save_minutes: minutes between saved states.
        save_steps: steps between saved states, besides.
        tracking: where the history is shown.
        memory: bytes that the training can have; None is what is free on a GPU, and no limit on a CPU.
        clock: called with the name of each part of a step when it is done (for benchmarks).
    """

    device: torch.device | str | None = None
    progress: bool = True
    time_limit: float | None = None
    save_minutes: float = 10.0
    save_steps: int | None = None
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
    from there and ends in the weights of an undisturbed run. At the end ``history.jsonl`` is in `directory`.

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
    step = _Step(model, recipe, objective, forward, lr=lr, seed=seed, total=total, world=world, clock=options.clock)
    best = _Best(model, validation)

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

        def leave_when_full(kind: Any, error: BaseException | None, _: Any) -> None:
            """After an exhausted memory, save what is whole and leave as for a time limit, with advice."""
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

        leaving.push(leave_when_full)
        before = allocated(device)
        batches = loader.batches(done.step, total, device=device, rows=world.rows)
        memory = options.memory or available(device, beside=allocated(device) - before)
        step.parts = max(step.parts, done.parts)
        if memory is not None and forward is None:
            counted = parts_for(memory, model, loader, recipe, objective, processes=world.size) if world.main else 1
            step.parts = world.max(max(step.parts, counted))
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
        step.average.swap()
        kept = best.restore(done)
        check()
        result = Fit(done.history, done.step, kept, meter.provenance(done))
        model.eval()
        if world.main:
            log.publish(directory)
            if finish is not None:
                finish(result)
        folder.remove()
        result.signal = folder.signal
    return result


class _Step:
    """One optimiser step: front end, augmentation, forward and backward pass, update.

    Attributes:
        parts: in how many parts a batch is computed.
        whole: whether weights, optimiser and average are those of one step; false within an update.
    """

    def __init__(
        self,
        model: Any,
        recipe: TrainRecipe,
        objective: Objective,
        forward: Forward | None,
        *,
        lr: float,
        seed: int,
        total: int,
        world: World,
        clock: Callable[[str], None],
    ) -> None:
        self.model, self.recipe, self.objective = model, recipe, objective
        self.lr, self.seed, self.total, self.world, self.clock = lr, seed, total, world, clock
        self.device, self.whole = next(model.parameters()).device, True
        self.parts = recipe.accumulate
        groups = model.depth_groups() if recipe.layer_decay < 1 else None
        self.optimiser = build_optimiser(model, recipe, lr=lr, depth_groups=groups)
        self.average = Average(model, recipe.ema)
        self.half = half_precision(recipe, self.device)
        self.scaler: Any = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        if recipe.compile:
            model.compile_blocks() if hasattr(model, "compile_blocks") else model.compile()
        self.call = world.distribute(_Call(model, forward), self.device)
        self.kept: dict[tuple[str, int], Tensor] = {}

    def __call__(self, step: int, batch: Batch) -> tuple[Tensor, float]:
        """Train on a batch.

        Returns:
            The loss of this process's rows (on the device), and the learning rate.
        """
        size, rows = len(batch), self.world.rows(len(batch))
        rate = factor(step, self.recipe, total=self.total, peak=self.lr)
        set_rate(self.optimiser, rate)
        self.clock("data")
        mel, batch = self._spectrograms(step, batch)

        loss = torch.zeros((), device=self.device)
        parts = _parts(rows, self.parts)
        for i, part in enumerate(parts):
            # Layerdrop and positions are those of the whole batch, however it is divided; dropout is of each part.
            noise = torch_generator(self.seed, "model", step, 0, 0)
            with self.world.synchronised(self.call, now=i == len(parts) - 1):
                with self._autocast():
                    frames, clips = self.call(mel[part], noise, self.world.rank * size + i)
                share = (part.stop - part.start) * self.world.size / size
                value = share * self.objective(frames.float(), clips.float(), batch, part)
                self.clock("forward")
                self.scaler.scale(value).backward()
                self.clock("backward")
            loss += value.detach()

        if self.recipe.clip_gradient is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_gradient)
        self.whole = False
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update()
        self.whole = True
        self.clock("optimiser")
        return loss, rate * self.lr

    @torch.no_grad()
    def _spectrograms(self, step: int, batch: Batch) -> tuple[Tensor, Batch]:
        """Augmented spectrograms of the whole batch, and the batch with its labels augmented alike."""
        batch = self.world.whole(batch)
        if self.recipe.keep_spectrograms:
            mel = self._kept(batch)
        else:
            mel = self.model.frontend(batch.waveform, generator=torch_generator(self.seed, "frontend", step))
        self.clock("frontend")
        draws = numpy_generator(self.seed, "augment", step)
        mel, batch = augment(self.world.gather(mel, len(batch)), batch, self.recipe.augment, generator=draws)
        self.clock("augment")
        return mel, batch

    def _kept(self, batch: Batch) -> Tensor:
        """Spectrograms without jitter, each computed when its clip first comes, by itself: equal in any batch."""
        cuts = list(zip(batch.ids, batch.starts.tolist()))[self.world.rows(len(batch))]
        for cut, waveform in zip(cuts, batch.waveform, strict=True):
            if cut not in self.kept:
                self.kept[cut] = self.model.frontend(waveform[None])[0]
        return torch.stack([self.kept[cut] for cut in cuts])

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self.half) if self.half is not None else nullcontext()


def half_precision(recipe: TrainRecipe, device: torch.device) -> torch.dtype | None:
    """The type of forward and backward passes: the recipe's on a GPU, None (fp32) on a CPU."""
    return HALF.get(recipe.precision) if device.type == "cuda" else None


class _Call(nn.Module):
    """The model behind one `forward`, so that DistributedDataParallel sees every use of its parameters."""

    def __init__(self, model: Any, forward: Forward | None) -> None:
        super().__init__()
        self.model, self.function = model, forward

    def forward(self, mel: Tensor, generator: torch.Generator, part: int) -> tuple[Tensor, Tensor]:
        if self.function is not None:
            return self.function(self.model, mel, generator)
        return self.model(mel, generator=generator, part=part, outputs="logits")


class _Best:
    """The weights of the lowest validation loss, and the number of validations without a lower one."""

    def __init__(self, model: nn.Module, validation: Validation | None) -> None:
        self.model, self.validation = model, validation
        self.weights: dict[str, Tensor] | None = None

    def update(self, metrics: Mapping[str, float], done: Progress) -> bool:
        """Take the metrics of a validation; returns whether patience is exhausted."""
        assert self.validation is not None
        keeps, patience = self.validation.select == "best_loss", self.validation.patience
        if not keeps and patience is None:
            return False
        if "val/loss" not in metrics:
            raise UserError("select: best_loss and patience need a validation that gives val/loss")
        if done.best is not None and metrics["val/loss"] >= done.best:
            done.worse += 1
        else:
            done.best, done.best_step, done.worse = metrics["val/loss"], done.step, 0
            if keeps:
                weights = trained(self.model).items()
                self.weights = {name: value.detach().to("cpu", copy=True) for name, value in weights}
        return patience is not None and done.worse >= patience

    def restore(self, done: Progress) -> int:
        """Put the best weights into the model, if they were kept; returns the step of the model's weights."""
        if self.weights is None:
            return done.step
        for name, value in trained(self.model).items():
            value.data.copy_(self.weights[name])
        return done.best_step or 0


def _parts(rows: slice, parts: int) -> list[slice]:
    """Cut `rows` into at most `parts` slices, equal but for the last."""
    each = -(-(rows.stop - rows.start) // parts)
    return [slice(start, min(rows.stop, start + each)) for start in range(rows.start, rows.stop, each)]


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
