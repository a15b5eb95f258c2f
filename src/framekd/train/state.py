"""The state of a run: what has to be saved to continue it exactly, and the folder that keeps it.

The folder is ``.resume`` beside the run's output. It is no declared output of the workflow, because Snakemake deletes
the declared outputs of a failed job. It is removed when the run has ended well. States are written aside and renamed,
so that the file is whole at any moment; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from framekd import slurm
from framekd.config import UserError
from framekd.files import replacing

STOPPED = 75
"""Exit code of a run that saved its state and left early (EX_TEMPFAIL of sysexits.h: try again)."""


class Stopped(SystemExit):
    """The run saved its state and left, because of a signal or its wall time; started again, it continues."""

    def __init__(self, sentence: str) -> None:
        super().__init__(STOPPED)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class Diverged(RuntimeError):
    """The loss is not finite."""


@dataclass
class Progress:
    """How far a run is, beside its tensors.

    Attributes:
        parts: in how many parts at least the batches are computed, after an exhausted memory.
    """

    step: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_step: int | None = None
    worse: int = 0
    parts: int = 1
    scaler: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The hidden folder of a run: a lock against a second writer, the saved state, signals and the wall time.

    A context manager. Only the first of several processes writes.
    """

    def __init__(self, directory: Path, identity: str, *, time_limit: float | None, writes: bool) -> None:
        self.folder = directory / ".resume"
        self.file = self.folder / "state.safetensors"
        self.identity, self.writes = identity, writes
        self.deadline = _deadline(time_limit)
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> RunFolder:
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            owner = self.folder / "owner"
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                who = owner.read_text() if owner.exists() else "another process"
                raise UserError(
                    f"{self.folder.parent} is being trained by {who}; wait for it, or end it first"
                ) from None
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.writes:
            self._lock.release()

    def _on_signal(self, number: int, _: Any) -> None:
        self.signal = signal.Signals(number).name

    def reason_to_leave(self) -> str | None:
        """Why the run should save its state and end now; None if it should not."""
        if self.signal:
            return f"{self.signal} came"
        if self.deadline is not None and time.time() >= self.deadline:
            return slurm.WALL_TIME
        return None

    def save(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        progress: Progress,
        *,
        average: Mapping[str, Tensor],
        best: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the state; a kill at any moment leaves the one before or this one."""
        if not self.writes:
            return
        tensors = {f"model/{name}": value for name, value in trained(model).items()}
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        for parameter, slots in optimiser.state.items():
            present = {slot: value for slot, value in slots.items() if value is not None}
            tensors |= {f"optimiser/{names[parameter]}/{slot}": value for slot, value in present.items()}
        tensors |= {f"average/{name}": value for name, value in average.items()}
        tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        with replacing(self.file) as aside:
            save_file(tensors, aside, {"identity": self.identity, "progress": json.dumps(asdict(progress))})

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, average: Mapping[str, Tensor]
    ) -> tuple[Progress, dict[str, Tensor] | None]:
        """Load the saved state into `model`, `optimiser` and `average`, if there is one of this very run.

        Returns:
            How far the run is, and the best weights so far (None without selection).
        """
        if not self.file.exists():
            return Progress(), None
        with safe_open(self.file, "pt") as handle:
            about = handle.metadata()
            if about["identity"] != self.identity:
                return Progress(), None
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
        progress = Progress(**json.loads(about["progress"]))
        for name, value in trained(model).items():
            value.data.copy_(tensors[f"model/{name}"])
        for name, value in average.items():
            value.copy_(tensors[f"average/{name}"])
        for name, parameter in model.named_parameters():
            start = f"optimiser/{name}/"
            slots = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if slots:
                optimiser.state[parameter] = {slot: value.to(parameter.device) for slot, value in slots.items()}
        best = {key.removeprefix("best/"): value for key, value in tensors.items() if key.startswith("best/")}
        return progress, best or None

    def remove(self) -> None:
        """Remove the folder, after the run has ended well."""
        if self.writes:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.folder)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that train, and buffers that are part of the weights."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def finite(model: nn.Module) -> bool:
    """Whether all weights are finite numbers."""
    return all(bool(value.isfinite().all()) for value in trained(model).values())


def digest(model: nn.Module, about: Mapping[str, Any]) -> str:
    """What makes a run that run: its settings and the weights that it starts from."""
    hasher = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
    for name, value in model.state_dict().items():
        hasher.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _deadline(time_limit: float | None) -> float | None:
    """When to leave, in seconds since 1970: `time_limit` from now, or shortly before Slurm ends the job."""
    ends = [] if time_limit is None else [time.time() + time_limit]
    if (leave := slurm.leave_at()) is not None:
        ends.append(leave)
    return min(ends, default=None)


class Average:
    """``a ← decay · a + (1 − decay) · w`` after every step, from the weights that the run starts with.

    It averages the parameters that train; buffers stay the model's. Without a decay it is empty and does nothing.
    Processes that train together have equal weights, hence equal averages.

    Attributes:
        weights: the average by parameter name, on the model's device.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        training = [] if decay is None else [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters: list[Tensor] = [parameter for _, parameter in training]
        self.weights: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in training}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present weights."""
        if self.decay is not None:
            torch._foreach_lerp_(list(self.weights.values()), self._parameters, 1.0 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average."""
        for parameter, mean in zip(self._parameters, self.weights.values(), strict=True):
            own = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own after it."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
