"""Scores of a model while it trains: those that decide which weights are kept, and those that are only watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from framekd.config import UserError
from framekd.train.state import Progress, trained

BETTER = 0.98
"""A model has learnt something if its loss is under this share of the loss of constant predictions."""


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


class Best:
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
