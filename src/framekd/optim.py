"""Optimiser and learning-rate schedule; the schedule is a pure function of the step (Sec. 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from framekd.config import HeadRecipe


class Optimiser:
    """Adam, AdamW or SGD by torch's own fused kernels.

    It stands for ``torch.optim.Adam(fused=True)`` and its siblings, and takes the same steps bit for bit. Their first
    use imports all of torch's compiler, seconds that every short job would pay; their functional form does not.

    Attributes:
        param_groups: dicts of params, lr, weight_decay and ``peak``, the rate that a schedule's factor multiplies.
        state: per parameter, tensors by name; empty until its first gradient.
    """

    def __init__(self, groups: list[dict[str, Any]], recipe: HeadRecipe) -> None:
        self.param_groups, self.recipe = groups, recipe
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients; parameters without any stay as they are."""
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not params:
                continue
            grads = [parameter.grad for parameter in params]
            slots = [self.state.get(p) or self.state.setdefault(p, self._fresh(p)) for p in params]
            rates = {"lr": group["lr"], "weight_decay": group["weight_decay"], "maximize": False}
            if self.recipe.optimiser == "sgd":
                momentum: list[Tensor | None] = [slot["momentum_buffer"] for slot in slots]
                sgd(params, grads, momentum, momentum=self.recipe.momentum, dampening=0.0, nesterov=False,
                    fused=True, **rates)  # fmt: skip
            else:
                first, second, steps = ([slot[key] for slot in slots] for key in ("exp_avg", "exp_avg_sq", "step"))
                beta1, beta2 = self.recipe.betas
                adam(params, grads, first, second, [], steps, amsgrad=False, beta1=beta1, beta2=beta2, eps=1e-8,
                     decoupled_weight_decay=self.recipe.optimiser == "adamw", fused=True, **rates)  # fmt: skip

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self.recipe.optimiser == "sgd":
            return {"momentum_buffer": torch.zeros_like(parameter)}
        return {
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
            "step": torch.zeros((), device=parameter.device),
        }


def build_optimiser(
    model: nn.Module, recipe: HeadRecipe, *, lr: float, depth_groups: Sequence[Sequence[str]] | None = None
) -> Optimiser:
    """Adam, AdamW or SGD over the parameters that train; each group remembers its peak rate in ``group["peak"]``.

    depth_groups: parameter names by depth, top first (``framekd.models.depth_groups``). With ``recipe.layer_decay`` d,
    group i trains at ``lr * d ** (i + 1)`` and all parameters outside the groups (the heads) at `lr`. AdamW decays
    tensors of two or more dimensions only. Raises ValueError if nothing trains.
    """
    depth = {name: i + 1 for i, names in enumerate(depth_groups or ()) for name in names}
    layer_decay = getattr(recipe, "layer_decay", 1.0)
    if layer_decay < 1.0 and not depth:
        raise ValueError("layer_decay needs the model's depth groups; write layer_decay: 1.0 for a model without")
    gathered: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        peak = lr * layer_decay ** depth.get(name, 0)
        spared = recipe.optimiser == "adamw" and parameter.ndim < 2
        gathered.setdefault((peak, 0.0 if spared else recipe.weight_decay), []).append(parameter)
    if not gathered:
        raise ValueError("no parameter of the model trains: all have requires_grad=False")
    groups = [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), params in gathered.items()
    ]
    return Optimiser(groups, recipe)


def factor(step: int, recipe: HeadRecipe, *, total: int, peak: float) -> float:
    """What the peak rate is multiplied with at `step` (0 is the first) of `total`.

    "cosine": linear from 0 at step 0 to 1 at ``warmup_steps``, then half a cosine down to ``min_learning_rate`` at
    `total`. "exp_linear": EfficientAT's, constant within an epoch (see :func:`exp_linear`).
    """
    if recipe.schedule == "exp_linear":
        per_epoch = total / recipe.epochs
        return exp_linear(int(step / per_epoch), epochs=recipe.epochs, warmup=recipe.warmup_steps / per_epoch)
    if step < recipe.warmup_steps:
        return step / recipe.warmup_steps
    floor = recipe.min_learning_rate / peak
    progress = min(1.0, (step - recipe.warmup_steps) / max(1, total - recipe.warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def exp_linear(epoch: int, *, epochs: int, warmup: float, last: float = 0.01) -> float:
    """EfficientAT's schedule: exp(-5 (1 - e/warmup)²), flat, then a line to `last`.

    It falls from 40 % of all epochs over 47.5 % of them: epochs 80 to 175 of EfficientAT's 200.
    """
    rise = 1.0
    if epoch < warmup:
        rise = math.exp(-5.0 * (1.0 - max(epoch, 0.5) / warmup) ** 2)
    start, length = 0.4 * epochs, 0.475 * epochs
    fall = min(1.0, max(last, last + (1.0 - last) * (length - epoch + start) / length))
    return rise * fall


def set_rate(optimiser: Optimiser, value: float) -> None:
    """Give every group its peak rate times `value`."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * value
