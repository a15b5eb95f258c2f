"""Frozen transformers: compute the features once, then train the heads of all runs together.

The transformer is in evaluation mode and never changes, so the sequence of each crop is computed once. Clips longer
than 10 s give a crop every 5 s instead of random crops (every 10 s if `random_crop` is off); with `random_crop: fresh`
each batch of the training is cut at random and encoded anew. Runs (seeds, folds) differ
in their initial heads, their clips and the order of these. They are trained side by side as one batched problem; each
has its own loss, gradients and optimiser state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from framekd.config import HeadRecipe, TrainRecipe, UserError
from framekd.data import Cutter, Draw, Loader
from framekd.inference import autocast
from framekd.models import FrameModel, attention_pool, init_linear
from framekd.optim import build_optimiser, factor, set_rate
from framekd.tasks.problem import Part, Problem, Run, frame_count, join_crops, share_of
from framekd.train import numpy_generator, torch_generator
from framekd.units import CLIP_FRAMES

CROP_HOP = CLIP_FRAMES // 2


@dataclass(frozen=True)
class Crops:
    """Sequences and labels of the crops of a pool, one row per crop.

    Attributes:
        clip: [crops], position of the clip in the pool.
        start: [crops], label frame at which the crop begins.
        features: float16, in the memory of the device if they fit.
    """

    clip: np.ndarray
    start: np.ndarray
    features: Float[Tensor, "crops frames width"]
    frame_labels: Float[Tensor, "crops classes frames"] | None
    clip_labels: Float[Tensor, "crops classes"]

    def of(self, part: Part) -> np.ndarray:
        """Rows of the crops of a part's clips."""
        return np.flatnonzero(np.isin(self.clip, part.clips))


def crop_starts(frames: int, *, dense: bool) -> list[int]:
    """Label frames at which the crops of a clip begin: every 10 s; `dense` adds the crops halfway between."""
    starts = set(range(0, max(frames, 1), CLIP_FRAMES))
    if dense:
        starts |= set(range(CROP_HOP, frames - CLIP_FRAMES + 1, CLIP_FRAMES))
    return sorted(starts)


@torch.no_grad()
def compute(model: FrameModel, problem: Problem, recipe: HeadRecipe, *, device: torch.device) -> dict[str, Crops]:
    """Features and labels of all crops, by pool."""
    model.to(device).eval()
    out = {}
    trained = {part.pool for run in problem.runs for part in run.train}
    for name, pool in problem.pools.items():
        dense = name in trained and recipe.random_crop is True
        starts = [crop_starts(n, dense=dense) for n in frame_count(pool.samples).tolist()]
        clip = np.repeat(np.arange(len(pool)), [len(s) for s in starts])
        start = np.concatenate([np.array(s, np.int64) for s in starts])
        room = _room(len(clip) * CLIP_FRAMES * model.embed_dim * 2, device)
        features = torch.empty((len(clip), CLIP_FRAMES, model.embed_dim), dtype=torch.float16, device=room)
        cutter = Cutter(pool)
        strong: list[Tensor] = []
        weak: list[Tensor] = []
        for i in range(0, len(clip), recipe.batch_size):
            rows = slice(i, i + recipe.batch_size)
            batch = cutter.batch(Draw(clip[rows], start[rows]))
            strong += [] if batch.frame_labels is None else [batch.frame_labels]
            weak += [] if batch.clip_labels is None else [batch.clip_labels]
            mel = model.frontend(batch.waveform.to(device))
            with autocast(device, recipe.precision):
                features[rows] = model.features(mel).to(torch.float16).to(room)
        out[name] = Crops(clip, start, features, torch.cat(strong) if strong else None, torch.cat(weak))
    return out


def _room(size: int, device: torch.device) -> torch.device:
    """The device if `size` bytes are less than half of its free memory; otherwise the CPU."""
    if device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] // 2:
        return device
    return torch.device("cpu")


class Heads(nn.Module):
    """Frame and clip heads of several runs, with the same equations as the heads of a `FrameModel`.

    Args:
        width: features per frame.
        attention: attention pooling for clip predictions, otherwise a linear head on the mean over time.
        init: `head_init` of the recipe.
    """

    def __init__(self, problem: Problem, width: int, *, attention: bool, init: str) -> None:
        super().__init__()
        runs, n_classes, std = problem.runs, len(problem.classes), 0.01 if init == "normal" else None
        self.runs, self.n_classes, self.attention = len(runs), n_classes, attention
        pairs = []
        for run in runs:
            generator = torch_generator(run.seed, "heads")
            pair = [nn.Linear(width, n_classes), nn.Linear(width, n_classes)]
            for layer in pair:
                init_linear(layer, generator, std=std)
            if init == "prior":
                pair[0].bias.data.copy_(torch.from_numpy(problem.log_odds(run)))
            pairs.append(pair)
        # Biases have one dimension, so that AdamW does not decay them, as in a model.
        self.frame_weight, self.frame_bias = _stacked([frame for frame, _ in pairs])
        self.clip_weight, self.clip_bias = _stacked([clip for _, clip in pairs])

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.view(self.runs, 1, -1), x, weight)

    def forward(
        self, features: Float[Tensor, "runs batch frames width"]
    ) -> tuple[Float[Tensor, "runs batch frames classes"], Float[Tensor, "runs batch classes"]]:
        """Frame and clip logits."""
        runs, batch, frames, _ = features.shape
        flat = features.flatten(1, 2)
        frame = self._linear(flat, self.frame_weight, self.frame_bias).view(runs, batch, frames, -1)
        if not self.attention:
            return frame, self._linear(features.mean(2), self.clip_weight, self.clip_bias)
        second = self._linear(flat, self.clip_weight, self.clip_bias).view(runs, batch, frames, -1)
        return frame, torch.logit(attention_pool(frame, second), eps=1e-7)

    def clip_gradients(self, max_norm: float) -> None:
        """Scale the gradients of each run to a norm of at most `max_norm`."""
        grads = [p.grad.view(self.runs, -1) for p in self.parameters() if p.grad is not None]
        scale = (max_norm / (torch.cat(grads, 1).norm(dim=1) + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale[:, None])


def _stacked(layers: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    weight = torch.stack([layer.weight.detach().T for layer in layers])
    return nn.Parameter(weight), nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))


def _order(run: Run, part: int, epoch: int, rows: np.ndarray, wanted: int) -> np.ndarray:
    """Rows of one epoch of a part of a run: as many random permutations as needed, `wanted` rows in all."""
    draw = numpy_generator(run.seed, "order", part, epoch)
    return np.concatenate([rows[draw.permutation(len(rows))] for _ in range(-(-wanted // len(rows)))])[:wanted]


def _losses(frame: Tensor, clip: Tensor, frame_labels: list[Tensor], clip_labels: list[Tensor], both: bool) -> Tensor:
    """Sum over the runs of their mean losses: frame labels, and with `both` also clip labels of the second part."""
    strong = frame_labels[0].transpose(2, 3)
    runs, count = len(frame), strong.shape[1]
    loss = runs * F.binary_cross_entropy_with_logits(frame[:, :count], strong)
    if both:
        loss = loss + runs * F.binary_cross_entropy_with_logits(clip[:, count:], clip_labels[1])
    return loss


class FreshCrops:
    """Random 10-s crops of the training clips, drawn and encoded for each batch: as the released code trains heads.

    It costs a forward pass of the transformer per run and batch, where :func:`compute` costs one per crop in all.
    """

    def __init__(self, model: FrameModel, problem: Problem, recipe: HeadRecipe, *, device: torch.device) -> None:
        self.model, self.device, self.precision = model.to(device).eval(), device, recipe.precision
        share = share_of(recipe, len(problem.runs[0].train)).model_dump(exclude={"random_crop"})
        self.loaders = [
            [
                Loader(problem.pools[part.pool].select(part.clips), TrainRecipe(**share), seed=run.seed + 1_000_003 * p)
                for p, part in enumerate(run.train)
            ]
            for run in problem.runs
        ]

    @torch.no_grad()
    def batch(self, step: int, part: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features [runs, batch, frames, width], frame labels (None without) and clip labels of a part of a batch."""
        features, frame_labels, clip_labels = [], [], []
        for loaders in self.loaders:
            batch = loaders[part].batch(step).to(self.device)
            mel = self.model.frontend(batch.waveform)
            with autocast(self.device, self.precision):
                features.append(self.model.features(mel).float())
            if batch.frame_labels is not None:
                frame_labels.append(batch.frame_labels)
            assert batch.clip_labels is not None
            clip_labels.append(batch.clip_labels)
        return torch.stack(features), torch.stack(frame_labels) if frame_labels else None, torch.stack(clip_labels)


def train(
    crops: Mapping[str, Crops],
    problem: Problem,
    recipe: HeadRecipe,
    *,
    lr: float,
    head: str,
    device: torch.device,
    progress: bool = False,
    fresh: FreshCrops | None = None,
) -> Heads:
    """Train the heads of all runs at one rate: see :func:`train_rates`.

    Raises:
        UserError: a non-finite loss, or a batch size that the parts do not divide.
    """
    [heads] = train_rates(crops, problem, recipe, rates=[lr], head=head, device=device, progress=progress, fresh=fresh)
    if isinstance(heads, int):
        raise UserError(f"{problem.task}: non-finite loss of the heads at step {heads}; lower frozen.learning_rate")
    return heads


def train_rates(
    crops: Mapping[str, Crops],
    problem: Problem,
    recipe: HeadRecipe,
    *,
    rates: Sequence[float],
    head: str,
    device: torch.device,
    progress: bool = False,
    fresh: FreshCrops | None = None,
) -> list[Heads | int]:
    """Train the heads of all runs at each of `rates`, side by side.

    Rates see the same batches, so features are taken once for all of them. A rate whose loss is not finite stops alone.

    Args:
        crops: features by pool, from :func:`compute`.
        rates: peak learning rates.
        head: "linear" or "attention".
        fresh: draws and encodes the batches in place of `crops`.
    Returns:
        By rate: heads, or the step at which the loss was not finite.
    Raises:
        UserError: a batch size that the parts do not divide.
    """
    runs, parts = problem.runs, len(problem.runs[0].train)
    share = share_of(recipe, parts)
    size, wanted = share.batch_size, share.epoch_clips
    width = next(iter(crops.values())).features.shape[2]
    of_rate = {
        rate: Heads(problem, width, attention=head == "attention", init=recipe.head_init).to(device) for rate in rates
    }
    found: dict[float, Heads | int] = dict(of_rate)
    optimisers = {rate: build_optimiser(heads, recipe, lr=rate) for rate, heads in of_rate.items()}
    rows = [[crops[part.pool].of(part) for part in run.train] for run in runs]
    per_epoch = -(-wanted // size)
    total = recipe.epochs * per_epoch
    for step in tqdm(range(total), desc=f"{problem.task} heads", disable=not progress):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            order = [[_order(r, p, epoch, rows[i][p], wanted) for p in range(parts)] for i, r in enumerate(runs)]
        features, frame_labels, clip_labels = [], [], []
        for p in range(parts):
            if fresh is not None:
                drawn, strong, weak = fresh.batch(step, p)
                features.append(drawn)
                frame_labels += [] if strong is None else [strong]
                clip_labels.append(weak)
                continue
            source = crops[runs[0].train[p].pool]
            chosen = torch.from_numpy(np.stack([o[p][at * size : (at + 1) * size] for o in order]))
            features.append(_take(source.features, chosen, device).float())
            if source.frame_labels is not None:
                frame_labels.append(_take(source.frame_labels, chosen, device))
            clip_labels.append(_take(source.clip_labels, chosen, device))
        logits = together(list(of_rate.values()), torch.cat(features, 1))
        losses = torch.stack(
            [_losses(frame, clip, frame_labels, clip_labels, problem.objective == "both") for frame, clip in logits]
        )
        finite = losses.detach().isfinite().tolist()
        for rate, good in zip(list(of_rate), finite):
            if not good:
                found[rate] = step
                del of_rate[rate]
        if not of_rate:
            break
        for heads in of_rate.values():
            heads.zero_grad(set_to_none=True)
        torch.stack([loss for loss, good in zip(losses, finite) if good]).sum().backward()
        for rate, heads in of_rate.items():
            set_rate(optimisers[rate], factor(step, recipe, total=total, peak=rate))
            if recipe.clip_gradient is not None:
                heads.clip_gradients(recipe.clip_gradient)
            optimisers[rate].step()
    return [found[rate] for rate in rates]


def together(heads: Sequence[Heads], features: Float[Tensor, "runs batch frames width"]) -> list[tuple[Tensor, Tensor]]:
    """Frame and clip logits of several sets of heads on the same features, which are read once for all."""
    if len(heads) == 1:
        return [heads[0](features)]
    first = heads[0]

    def linear(x: Tensor, name: str) -> tuple[Tensor, ...]:
        weight = torch.cat([getattr(one, f"{name}_weight") for one in heads], 2)
        bias = torch.cat([getattr(one, f"{name}_bias").view(first.runs, 1, -1) for one in heads], 2)
        return torch.baddbmm(bias, x.flatten(1, -2), weight).view(*x.shape[:-1], -1).split(first.n_classes, -1)

    frames = linear(features, "frame")
    if not first.attention:
        return list(zip(frames, linear(features.mean(2), "clip")))
    seconds = linear(features, "clip")
    return [(f, torch.logit(attention_pool(f, s), eps=1e-7)) for f, s in zip(frames, seconds)]


def _take(source: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """source[rows] on the device; rows is [runs, batch]."""
    return source[rows.to(source.device)].to(device, non_blocking=True)


@torch.no_grad()
def predict(
    heads: Heads, crops: Mapping[str, Crops], problem: Problem, *, batch_size: int, device: torch.device
) -> list[dict[str, np.ndarray]]:
    """Probabilities of the test clips, per run: {clip: [frames, classes]}."""
    out = []
    for i, run in enumerate(problem.runs):
        source, pool = crops[run.test.pool], problem.pools[run.test.pool]
        rows = source.of(run.test)
        rows = rows[source.start[rows] % CLIP_FRAMES == 0]
        weight, bias = heads.frame_weight[i], heads.frame_bias.view(heads.runs, -1)[i]
        found = []
        for first in range(0, len(rows), batch_size):
            x = _take(source.features, torch.from_numpy(rows[first : first + batch_size]), device).float()
            found.append((x @ weight + bias).sigmoid().cpu().numpy())
        whole, clips = np.concatenate(found), source.clip[rows]
        out.append({pool.ids[c]: join_crops(whole[clips == c], pool.samples[c]) for c in dict.fromkeys(clips.tolist())})
    return out
