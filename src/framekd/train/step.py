"""One optimiser step: front end, augmentation, forward and backward pass, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from framekd.augment import augment
from framekd.config import TrainRecipe
from framekd.data import Batch
from framekd.inference import HALF
from framekd.optim import build_optimiser, factor, set_rate
from framekd.train.objectives import Objective
from framekd.train.parallel import World
from framekd.train.seeds import numpy_generator, torch_generator
from framekd.train.state import Average

Forward = Callable[[nn.Module, Tensor, torch.Generator | None], tuple[Tensor, Tensor]]
"""``forward(model, mel, generator)``: frame logits [batch, classes, frames] and clip logits [batch, classes].

The parts of a batch get equal generators.
"""


class Step:
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


def _parts(rows: slice, parts: int) -> list[slice]:
    """Cut `rows` into at most `parts` slices, equal but for the last."""
    each = -(-(rows.stop - rows.start) // parts)
    return [slice(start, min(rows.stop, start + each)) for start in range(rows.start, rows.stop, each)]
