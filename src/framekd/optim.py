"""Optimiser and learning-rate schedule; the schedule is a pure function of the step (Sec. 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from framekd.config import HeadRecipe


def build_optimiser(
    model: nn.Module, recipe: HeadRecipe, *, lr: float, depth_groups: Sequence[Sequence[str]] | None = None
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over the parameters that train; each group keeps its peak rate in ``group["peak"]``.

    AdamW decays tensors of two or more dimensions only.

    Args:
        model: gives the parameters.
        recipe: optimiser, betas, momentum, weight_decay, and layer_decay where it has one.
        lr: peak learning rate.
        depth_groups: parameter names by depth, top first. With layer decay d, group i trains at ``lr * d ** (i + 1)``,
            and all parameters outside the groups (the heads) at `lr`.

    Raises:
        ValueError: no parameter trains, or layer_decay without depth groups.
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
    groups: list[dict[str, Any]] = [
        {"params": params, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), params in gathered.items()
    ]
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=True)
        # Buffers of zeros, since the fused kernel takes all buffers or none, and layerdrop leaves some gradients out.
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimiser
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr, betas=recipe.betas, fused=True)


def factor(step: int, recipe: HeadRecipe, *, total: int, peak: float) -> float:
    """The factor of the peak learning rate at `step` (the first is 0) of `total`.

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


def set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of every group to its peak rate times `value`."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * value
