"""What a run tells: history as JSON lines (and to whom it may be shown), hours and energy for its provenance."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framekd.train.parallel import World
from framekd.train.state import Diverged, Progress
from framekd.train.trackers import Tracker

FILE = "history.jsonl"


class Log:
    """Losses are read from the device once per line, not once per step: a GPU is never made to wait for the host."""

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
        # On a CPU the loss is there anyway, so that each step is checked; a GPU is asked once in a while.
        self.check_every = 1 if device.type == "cpu" and world.size == 1 else min(self.every, 20)
        self.shown = "?"
        self._waiting: list[tuple[int, Sequence[str], Tensor]] = []
        self._losses: list[float] = []
        self._clips, self._since = 0, time.perf_counter()
        self._trackers = trackers
        if world.main:
            self._rewrite(self.file)

    def add(self, step: int, ids: Sequence[str], loss: Tensor, *, rate: float, clips: int) -> None:
        """Remember a step's loss (on the device); every so often check all that wait and write a line."""
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
        """Raise :class:`Diverged` if a loss since the last check is no number; all processes together."""
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
        """Add a line to the history."""
        line = {"step": step, **values}
        self.done.history.append(line)
        if self.world.main:
            with self.file.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.write(step, values)

    def publish(self, directory: Path) -> None:
        """Put the whole history beside the run's output."""
        self._rewrite(directory / FILE)

    def close(self) -> None:
        """Let the trackers write what they still hold."""
        for tracker in self._trackers:
            tracker.close()

    def _rewrite(self, path: Path) -> None:
        aside = path.with_name(f".{path.name}.partial")
        aside.write_text("".join(json.dumps(line) + "\n" for line in self.done.history))
        aside.replace(path)


class Meter:
    """Seconds that a run took, over all its continuations, and joules of its GPUs where the driver counts them."""

    def __init__(self, device: torch.device, world: World) -> None:
        self.device, self.world, self._energy = device, world, _energy_counter(device)
        self._since, self._joules = time.monotonic(), self._energy() if self._energy else 0.0

    def read(self, done: Progress) -> None:
        """Add what passed since the last reading; all processes together."""
        now = time.monotonic()
        done.seconds += now - self._since
        self._since = now
        joules = self._energy() if self._energy else 0.0
        done.joules += self.world.total(joules - self._joules)
        self._joules = joules

    def provenance(self, done: Progress) -> dict[str, Any]:
        """Devices, hours (of the clock; of a GPU, times their number, GPU hours) and (of GPUs) energy."""
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
