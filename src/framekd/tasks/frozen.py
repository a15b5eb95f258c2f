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
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from framekd.config import HeadRecipe, TrainRecipe, UserError
from framekd.data import Cutter, Draw, Loader
from framekd.inference import autocast
from framekd.losses import bce
from framekd.models import FrameModel
from framekd.optim import build_optimiser, factor, set_rate
from framekd.tasks.heads import Heads, LowestLoss, losses
from framekd.tasks.problem import Part, Problem, Run, frame_count, join_crops, share_of
from framekd.train import numpy_generator
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


def _order(run: Run, part: int, epoch: int, rows: np.ndarray, wanted: int) -> np.ndarray:
    """Rows of one epoch of a part of a run: as many random permutations as needed, `wanted` rows in all."""
    draw = numpy_generator(run.seed, "order", part, epoch)
    return np.concatenate([rows[draw.permutation(len(rows))] for _ in range(-(-wanted // len(rows)))])[:wanted]


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
    select: Literal["last", "best"] = "last",
) -> Heads:
    """Train the heads of all runs at one rate: see :func:`train_rates`.

    Raises:
        UserError: a non-finite loss, or a batch size that the parts do not divide.
    """
    [heads] = train_rates(
        crops, problem, recipe, rates=[lr], head=head, device=device, progress=progress, fresh=fresh, select=select
    )
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
    select: Literal["last", "best"] = "last",
) -> list[Heads | int]:
    """Train the heads of all runs at each of `rates`, side by side.

    Rates see the same batches, so features are taken once for all of them. A rate whose loss is not finite stops alone.

    Args:
        crops: features by pool, from :func:`compute`.
        rates: peak learning rates.
        head: "linear" or "attention".
        fresh: draws and encodes the batches in place of `crops`.
        select: "best" keeps, of each rate and run, the weights of the epoch with the lowest validation loss.
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
    lowest = {rate: LowestLoss(heads) for rate, heads in of_rate.items()} if select == "best" else {}
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
        of_weak = clip_labels[1] if problem.objective == "both" else None
        loss = losses(list(of_rate.values()), features, frame_labels[0], of_weak)
        finite = loss.detach().isfinite().tolist()
        for rate, good in zip(list(of_rate), finite):
            if not good:
                found[rate] = step
                del of_rate[rate]
        if not of_rate:
            break
        for heads in of_rate.values():
            heads.zero_grad(set_to_none=True)
        loss.sum().backward()  # no rate has a part in the gradients of another
        for rate, heads in of_rate.items():
            set_rate(optimisers[rate], factor(step, recipe, total=total, peak=rate))
            if recipe.clip_gradient is not None:
                heads.clip_gradients(recipe.clip_gradient)
            optimisers[rate].step()
        if lowest and at == per_epoch - 1:
            for rate, heads in of_rate.items():
                lowest[rate].update(
                    validation_losses(heads, crops, problem, batch_size=recipe.batch_size, device=device)
                )
    for rate in of_rate if lowest else ():
        lowest[rate].restore()
    return [found[rate] for rate in rates]


def _take(source: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """source[rows] on the device; rows is [runs, batch]."""
    return source[rows.to(source.device)].to(device, non_blocking=True)


def _slices(crops: Crops, part: Part) -> np.ndarray:
    """Rows of the successive 10-s crops of a part's clips."""
    rows = crops.of(part)
    return rows[crops.start[rows] % CLIP_FRAMES == 0]


@torch.no_grad()
def validation_losses(
    heads: Heads, crops: Mapping[str, Crops], problem: Problem, *, batch_size: int, device: torch.device
) -> Float[Tensor, " runs"]:
    """The loss of each run on its validation clips, each crop with the same weight: a sum over the kinds of labels."""
    losses = torch.zeros(heads.runs)
    for i, run in enumerate(problem.runs):
        for part, kind in zip(run.valid, problem.kinds(), strict=True):
            source = crops[part.pool]
            rows, total = _slices(source, part), torch.zeros((), device=device)
            for first in range(0, len(rows), batch_size):
                some = torch.from_numpy(rows[first : first + batch_size])
                frame, clip = heads.of_run(i, _take(source.features, some, device).float())
                if kind == "strong":
                    assert source.frame_labels is not None
                    loss = bce(frame, _take(source.frame_labels, some, device).transpose(1, 2))
                else:
                    loss = bce(clip, _take(source.clip_labels, some, device))
                total += loss * len(some) / len(rows)
            losses[i] += total.cpu()
    return losses


def predict(
    heads: Heads, crops: Mapping[str, Crops], problem: Problem, *, batch_size: int, device: torch.device
) -> list[dict[str, np.ndarray]]:
    """Probabilities of the test clips, per run: {clip: [frames, classes]}."""
    return [
        predict_part(heads, i, run.test, crops, problem, batch_size=batch_size, device=device)
        for i, run in enumerate(problem.runs)
    ]


@torch.no_grad()
def predict_part(
    heads: Heads,
    i: int,
    part: Part,
    crops: Mapping[str, Crops],
    problem: Problem,
    *,
    batch_size: int,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Probabilities of the clips of a part by the heads of run `i`: {clip: [frames, classes]}."""
    source, pool = crops[part.pool], problem.pools[part.pool]
    rows, found = _slices(source, part), []
    for first in range(0, len(rows), batch_size):
        x = _take(source.features, torch.from_numpy(rows[first : first + batch_size]), device).float()
        found.append(heads.of_run(i, x)[0].sigmoid().cpu().numpy())
    whole, clips = np.concatenate(found), source.clip[rows]
    return {pool.ids[c]: join_crops(whole[clips == c], pool.samples[c]) for c in dict.fromkeys(clips.tolist())}
