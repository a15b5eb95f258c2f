"""How much memory a training needs, from a dry step without data and without a GPU; and what to do where it is short.

The step is the real one, on fake tensors that have shapes but no values. Every storage is counted while it lives. Four
operations need other memory on a GPU than in torch's CPU code. They are replaced by some that keep what CUDA keeps:

- attention: the fused kernels keep queries, keys, values, mask, output and one number per query. (Without a driver,
  fake CUDA tensors take the plain kernel, which keeps [batch, heads, tokens, tokens], and without autocast, in fp32.)
- BEATs' gated bias is computed again in the backward pass, as on a GPU.
- dropout keeps a mask of one byte per element.
- the GRU keeps cuDNN's reserve, here taken as `RESERVE` values per hidden unit, direction, layer and time step.

Not counted: the CUDA context (about 0.5 GB), workspaces of kernels, and memory that the allocator cannot reuse.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framekd.config import Config, Teacher, TrainRecipe
from framekd.data import Batch
from framekd.inference import HALF
from framekd.models import FrameModel, beats, build_model, mel
from framekd.models.beats import GatedAttention
from framekd.train.objectives import Objective
from framekd.train.parallel import World
from framekd.train.step import Step
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES

RESERVE = 5
MARGIN = 0.92
"""Share of a GPU's memory that a step may take by this count: the rest is for what is not counted."""
STATES = {"adam": 2, "adamw": 2, "sgd": 1}  # tensors that an optimiser keeps per parameter


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training.

    Attributes:
        kept: weights, optimiser state and moving average.
        batches: the batch of a step, and the bytes of the next one.
        step: the most that a step holds beside these: activations, gradients, augmented spectrograms and labels.
    """

    kept: int
    batches: int
    step: int

    @property
    def peak(self) -> int:
        """The most that a training holds."""
        return self.kept + self.batches + self.step


def footprint(
    model: FrameModel, recipe: TrainRecipe, objective: Objective, *, frames: int = CLIP_FRAMES, gpu: bool = True
) -> Footprint:
    """The memory of a training of `model`, from one dry step. The model is not changed.

    Args:
        recipe: batch_size, accumulate, optimiser, precision and augmentation count.
        objective: decides which labels a batch has.
        frames: label frames of a clip.
        gpu: as a GPU does it; False is as this CPU does it, in fp32.
    """
    recipe = recipe.model_copy(update={"compile": False, "keep_spectrograms": False})
    with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as changed:
        # Filters that are drawn anew would be computed by the host, without memory of the device.
        changed.enter_context(mock.patch.object(mel.EmphasisMel, "filters", lambda front_end, _: front_end.banks))
        # The cache would keep a fake tensor for later trainings.
        uncached = beats.relative_buckets.__wrapped__
        changed.enter_context(mock.patch.object(beats, "relative_buckets", uncached))
        changed.enter_context(_Host())
        model = _faked(model)
        more: dict[str, Any] = {"lr": 1e-4, "seed": 0, "total": 1, "clock": lambda part: None}
        step = Step(model, recipe, objective, None, world=World(alone=True), **more)
        step.optimiser.step = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        if gpu:
            step.half = HALF.get(recipe.precision)
            changed.enter_context(_as_on_a_gpu())
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        batch, ahead = _batch(model, recipe, objective, frames)
        with _Live() as live:
            step(0, batch)
        given = sum(t.nbytes for t in vars(batch).values() if isinstance(t, Tensor))
    kept = weights + trained * (STATES[recipe.optimiser] + (recipe.ema is not None))
    return Footprint(kept, given + (ahead if gpu else 0), live.peak)


def fitting(
    model: FrameModel, recipe: TrainRecipe, objective: Objective, memory: int, *, frames: int = CLIP_FRAMES
) -> tuple[int, Footprint] | None:
    """The smallest `accumulate`, from the recipe's on, whose step fits into `memory` bytes; None if none does."""
    for parts in range(recipe.accumulate, recipe.batch_size + 1):
        if recipe.batch_size % parts == 0:
            found = footprint(model, recipe.model_copy(update={"accumulate": parts}), objective, frames=frames)
            if found.peak <= MARGIN * memory:
                return parts, found
    return None


def survey(config: Config, memory: int | None = None) -> Iterator[tuple[str, str, TrainRecipe, Footprint, int | None]]:
    """Count the trainings of a configuration, a few seconds each.

    Args:
        memory: bytes of a GPU; None is unlimited.
    Yields:
        Model, stage, its recipe, its footprint, and the `accumulate` that fits into `memory`. If none fits, it is
        None, and the footprint is that of single clips.
    """
    for name in config.models:
        for stage, block in (("student", config.student), ("teacher", config.teacher), ("step2", config.step2)):
            recipe = block.recipe.of(name)
            goal = Objective("weak" if stage == "step2" else "strong", getattr(recipe, "distillation_weight", 0.0))
            classes, rnn = (527, None) if stage == "step2" else (447, None)
            if isinstance(block, Teacher):
                rnn = block.sequence_model
            sizes = {**config.sizes.get("all", {}), **config.sizes.get(name, {})}
            model = build_model(name, n_classes=classes, sequence_model=rnn, sizes=sizes)
            if memory is None:
                yield name, stage, recipe, footprint(model, recipe, goal), recipe.accumulate
            elif found := fitting(model, recipe, goal, memory):
                yield name, stage, recipe, found[1], found[0]
            else:
                alone = recipe.model_copy(update={"accumulate": recipe.batch_size})
                yield name, stage, recipe, footprint(model, alone, goal), None


def _batch(model: FrameModel, recipe: TrainRecipe, objective: Objective, frames: int) -> tuple[Batch, int]:
    """A batch without values, and how many bytes the host sends for the next one."""
    size, classes, samples = recipe.batch_size, model.n_classes, frames * FRAME_SAMPLES
    timed, distils = objective.kind != "weak", objective.distillation_weight > 0
    shape = (size, classes, frames) if timed else (size, classes)
    zeros = torch.zeros
    batch = Batch(
        [str(i) for i in range(size)],
        zeros(size, samples),
        zeros(size, dtype=torch.int64),
        zeros(size, dtype=torch.int64),
        zeros(size, classes, frames) if timed else None,
        zeros(size, classes),
        zeros(shape) if distils else None,
        zeros(size, dtype=torch.bool),
        zeros(size) if distils else None,
    )
    cuts = 1 + recipe.augment.wavmix
    return batch, int(2 * cuts * (size * samples + (zeros(shape).numel() if distils else 0)))


def _faked(model: FrameModel) -> FrameModel:
    """A copy of a model with fake weights; to be called within a fake mode."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    with unset_fake_temporarily():
        return copy.deepcopy(model, memo).train()


class _Host(TorchFunctionMode):
    """Random decisions and other values of the host stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        real = bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if real or kwargs.get("generator") is not None:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._known | given:
                self._known.add(id(storage))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Replace the operations whose memory differs on a GPU."""
    plain = F.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **rest: Any) -> Tensor:
        return plain(q, k, v, **rest) if attn_mask is None else _Fused.apply(q, k, v, attn_mask)

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if training and p > 0 else x

    def gru(module: nn.GRU, x: Tensor, *_: Any) -> tuple[Tensor, None]:
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _Gru.apply(x.to(half), module, *[w.to(half) for w in module.parameters()]), None

    changes: list[tuple[Any, str, Any]] = [
        (F, "scaled_dot_product_attention", attention),
        (F, "dropout", dropout),
        (nn.GRU, "forward", gru),
        (GatedAttention, "recompute", True),
        (mel, "pieces", lambda frames, into, _: [(frames, into)]),
    ]
    with ExitStack() as changed:
        for place, name, value in changes:
            changed.enter_context(mock.patch.object(place, name, value))
        yield


class _Fused(torch.autograd.Function):
    """The memory of a fused attention kernel with a mask."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (x.to(mask.dtype) for x in (q, k, v))
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:4])


class _Gru(torch.autograd.Function):
    """The memory of cuDNN's GRU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.GRU, *weights: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:2], 2 * module.hidden_size)
        reserve = x.new_empty(RESERVE * module.num_layers, *out.shape)
        ctx.save_for_backward(x, out, reserve, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, _, _, *weights = ctx.saved_tensors
        return torch.empty_like(x), None, *(torch.empty_like(weight) for weight in weights)
