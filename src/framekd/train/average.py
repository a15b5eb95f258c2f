"""An exponential moving average of the weights, if the recipe asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """``a ← decay · a + (1 − decay) · w`` after every step, from the weights that the run starts with.

    It averages the parameters that train; buffers stay the model's. Without a decay it is empty and does nothing. The
    processes that train together have equal weights, and so, without a word between them, equal averages.

    Attributes:
        weights: the average by parameter name, where the model is.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        training = [] if decay is None else [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters: list[Tensor] = [parameter for _, parameter in training]
        self.weights: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in training}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        if self.decay is not None:
            torch._foreach_lerp_(list(self.weights.values()), self._parameters, 1.0 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; twice is nothing."""
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
