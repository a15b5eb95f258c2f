"""Where a run is shown while it trains, beside its own history: TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from framekd.config import Tracking, UserError


class Tracker(Protocol):
    """What is told every line of the history."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def trackers(
    tracking: Tracking | None, directory: Path, *, step: int, identity: str, about: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers that the configuration asks for.

    step: steps that the run has behind it. identity: the same for a run and its continuation. about: settings to show;
    nothing else leaves the machine: no code, no console, no environment. UserError if a package is missing.
    """
    found: list[Tracker] = []
    if tracking is not None and tracking.tensorboard:
        found.append(TensorBoard(directory, step=step))
    if tracking is not None and tracking.wandb is not None:
        found.append(WeightsAndBiases(tracking, directory, identity=identity, about=about))
    return found


class TensorBoard:
    """Event files in ``directory/tensorboard``; what a killed run wrote after its last state is taken back."""

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
