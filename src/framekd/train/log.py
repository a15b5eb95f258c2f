"""What a run records while it trains: its history, hours and energy, and the trackers that show it elsewhere."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from framekd.config import Tracking, UserError
from framekd.files import write_text
from framekd.train.parallel import World
from framekd.train.state import Diverged, Progress

FILE = "history.jsonl"


class Log:
    """The history of a run. Losses are read from the device once per line, so that a GPU never waits for the host."""

    def __init__(
        self,
        folder: Path,
        done: Progress,
        *,
        total: int,
        device: torch.device,
        world: World,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.file, self.done, self.world = folder / FILE, done, world
        self.every = max(1, min(50, total // 100))
        # On a CPU the loss is at hand, so every step is checked; reading it from a GPU would stall the step.
        self.check_every = 1 if device.type == "cpu" and world.size == 1 else min(self.every, 20)
        self.shown = "?"
        self._waiting: list[tuple[int, Sequence[str], Tensor]] = []
        self._losses: list[float] = []
        self._clips, self._since = 0, time.perf_counter()
        self._trackers = trackers
        if world.main:
            self._rewrite(self.file)

    def add(self, step: int, ids: Sequence[str], loss: Tensor, *, rate: float, clips: int) -> None:
        """Keep a step's loss on the device; write a line every so often."""
        self._waiting.append((step, ids, loss))
        self._clips += clips
        line_due = (step + 1) % self.every == 0
        if line_due or len(self._waiting) >= self.check_every:
            self.check()
        if line_due:
            seconds = time.perf_counter() - self._since
            mean = sum(self._losses) / len(self._losses)
            line = {"train/loss": mean, "train/lr": rate, "train/clips_per_second": round(self._clips / seconds, 2)}
            self.write(step + 1, line)
            self.shown = f"{mean:.4f}"
            self._losses, self._clips, self._since = [], 0, time.perf_counter()

    def check(self) -> None:
        """Raise :class:`Diverged` if a loss since the last check is not finite. All processes call this together."""
        if not self._waiting:
            return
        values = self.world.mean(torch.stack([loss for _, _, loss in self._waiting])).tolist()
        for (step, ids, _), value in zip(self._waiting, values):
            if not math.isfinite(value):
                raise Diverged(
                    f"the loss is {value} at step {step} (clips {', '.join(ids)}); the last good state is kept in "
                    f"{self.file.parent}: lower the learning rate or look at these clips"
                )
        self._losses += values
        self._waiting = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line to the history and to the trackers."""
        line = {"step": step, **values}
        self.done.history.append(line)
        if self.world.main:
            with self.file.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.write(step, values)

    def publish(self, directory: Path) -> None:
        """Write the whole history to `directory`."""
        self._rewrite(directory / FILE)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _rewrite(self, path: Path) -> None:
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.done.history))


class Meter:
    """Measures a run over all its continuations: seconds, and joules of its GPUs where the driver counts them."""

    def __init__(self, device: torch.device, world: World) -> None:
        self.device, self.world, self._energy = device, world, _energy_counter(device)
        self._since, self._joules = time.monotonic(), self._energy() if self._energy else 0.0

    def read(self, done: Progress) -> None:
        """Add what passed since the last reading. All processes call this together."""
        now = time.monotonic()
        done.seconds += now - self._since
        self._since = now
        joules = self._energy() if self._energy else 0.0
        done.joules += self.world.sum(joules - self._joules)
        self._joules = joules

    def provenance(self, done: Progress) -> dict[str, Any]:
        """Device, processes, hours of the clock (times processes: GPU hours) and, of GPUs, watt-hours."""
        gpu = self.device.type == "cuda"
        out: dict[str, Any] = {"device": torch.cuda.get_device_name(self.device) if gpu else "cpu"}
        out["processes"] = self.world.size
        out["hours"] = round(done.seconds / 3600, 5)
        if done.joules:
            out["watt_hours"] = round(done.joules / 3600, 2)
        return out


def _energy_counter(device: torch.device) -> Any:
    """A function that reads the GPU's energy counter in joules; None where there is none."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001 (any driver may lack any of it, and no run should end for that)
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0


class Tracker(Protocol):
    """Receives every line of the history."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def trackers(
    tracking: Tracking | None, directory: Path, *, step: int, identity: str, about: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers that the configuration asks for.

    Args:
        tracking: the configuration's block of that name.
        directory: folder of the run.
        step: steps already done.
        identity: the same for a run and its continuation.
        about: settings to show. Nothing else leaves the machine: no code, no console, no environment.

    Raises:
        UserError: a package is missing.
    """
    found: list[Tracker] = []
    if tracking is not None and tracking.tensorboard:
        found.append(TensorBoard(directory, step=step))
    if tracking is not None and tracking.wandb is not None:
        found.append(WeightsAndBiases(tracking, directory, identity=identity, about=about))
    return found


class TensorBoard:
    """Event files in ``directory/tensorboard``. Lines that a killed run wrote after its last state are purged."""

    def __init__(self, directory: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            line = "tracking: {tensorboard: false}"
            raise UserError(f"tensorboard is not installed; pip install framekd[monitor], or write {line}") from None
        self._writer = SummaryWriter(directory / "tensorboard", purge_step=step + 1 if step else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, named after its folder; a continuation goes on with the same one."""

    def __init__(self, tracking: Tracking, directory: Path, *, identity: str, about: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "Weights & Biases is not installed; pip install wandb, or write tracking: {wandb: null}"
            ) from None
        online = tracking.wandb_mode == "online"
        try:
            self._run = wandb.init(
                project=tracking.wandb,
                name=directory.as_posix(),
                id=hashlib.blake2b(f"{directory} {identity}".encode(), digest_size=16).hexdigest(),
                resume="allow" if online else None,
                mode=tracking.wandb_mode,
                dir=str(directory),
                config=dict(about),
                settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
            )
        except wandb.Error as error:
            line = "tracking: {wandb_mode: offline}"
            raise UserError(f"Weights & Biases: {error}; run wandb login, or write {line}") from None
        # A continuation repeats the steps since its last state, which W&B's own step counter would refuse.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
