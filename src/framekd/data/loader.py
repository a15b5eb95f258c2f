"""Batches as pure functions of (seed, step): order, cut and waveform mixing never depend on threads or history."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.config import Recipe
from framekd.data.batch import Batch, concatenate
from framekd.data.clips import ClipSet
from framekd.events import CLIP_FRAMES, balanced_weights

HOP = 640
"""Samples per label frame."""
_ORDER, _STEP = 1, 2  # streams of random numbers


class SoftSource(Protocol):
    """The ensemble's soft labels."""

    def rows(self, ids: Sequence[str], /) -> np.ndarray | Tensor:
        """Probabilities, float32 [clips, classes, frames]."""


class Cutter:
    """Cuts of equal length from a set of clips, as tensors.

    Args:
        n_frames: length of a cut in label frames; what a clip lacks is zeros on the right.
        device: where batches are put together. On a GPU with `resident`, all audio lies in its memory as int16.
    """

    def __init__(
        self, clips: ClipSet, n_frames: int = CLIP_FRAMES, *, device: torch.device | str = "cpu", resident: bool = False
    ) -> None:
        self.clips, self.n_frames, self.device = clips, n_frames, torch.device(device)
        self.n_samples = n_frames * HOP
        self.n_classes = len(clips.classes)
        self._resident = self._load() if resident else None

    def _load(self) -> Tensor:
        """All clips as one int16 [clips, longest], zeros on the right."""
        longest = max(self.n_samples, int(self.clips.samples.max(initial=0)))
        whole = torch.zeros((len(self.clips), longest), dtype=torch.int16, device=self.device)
        for i in range(0, len(self.clips), 64):
            block = np.zeros((min(64, len(self.clips) - i), longest), np.int16)
            for k in range(len(block)):
                samples = self.clips.waveform(i + k)
                block[k, : len(samples)] = samples
            whole[i : i + len(block)] = torch.from_numpy(block).to(self.device)
        return whole

    def waveforms(self, clips: np.ndarray, starts: np.ndarray) -> Float[Tensor, "batch samples"]:
        """Cuts that begin at the label frames `starts`."""
        if self._resident is not None:
            index = torch.from_numpy(clips).to(self.device)
            if not starts.any():
                return self._resident[index, : self.n_samples].float().mul_(1 / 32768)
            begin = torch.from_numpy(starts * HOP).to(self.device)
            column = (begin[:, None] + torch.arange(self.n_samples, device=self.device)).clamp_(
                max=self._resident.shape[1] - 1
            )
            return self._resident[index].gather(1, column).float().mul_(1 / 32768)
        out = torch.empty((len(clips), self.n_samples), dtype=torch.float32)
        view = out.numpy()
        for row, clip, start in zip(view, clips.tolist(), (starts * HOP).tolist()):
            samples = self.clips.waveform(clip)[start : start + self.n_samples]
            row[: len(samples)] = samples
            row[len(samples) :] = 0
        return out.mul_(1 / 32768).to(self.device)

    def labels(self, clips: np.ndarray, starts: np.ndarray) -> tuple[Tensor | None, Tensor]:
        """Frame labels (None if no clip of the set has any) and clip labels of cuts."""
        source = self.clips
        frames = np.zeros((len(clips), self.n_classes, self.n_frames), np.uint8) if source.has_frames.any() else None
        whole = np.zeros((len(clips), self.n_classes), np.uint8)
        for k, (i, shift) in enumerate(zip(clips.tolist(), starts.tolist())):
            part = slice(source.start[i], source.start[i + 1])
            if not source.has_frames[i]:
                whole[k, source.label[part]] = 1
                continue
            begin = np.maximum(source.begin[part] - shift, 0).tolist()
            end = np.minimum(source.end[part] - shift, self.n_frames).tolist()
            for label, a, b in zip(source.label[part].tolist(), begin, end):
                if a < b:
                    frames[k, label, a:b] = 1
                    whole[k, label] = 1
        dense = None if frames is None else torch.from_numpy(frames).to(self.device).float()
        return dense, torch.from_numpy(whole).to(self.device).float()

    def batch(self, clips: np.ndarray, starts: np.ndarray, soft: SoftSource | None = None) -> Batch:
        """The cuts of `clips` at `starts` (label frames), unmixed."""
        ids = [self.clips.ids[i] for i in clips.tolist()]
        frames, whole = self.labels(clips, starts)
        lengths = np.clip(self.clips.samples[clips] - starts * HOP, 0, self.n_samples)
        return Batch(
            ids,
            self.waveforms(clips, starts),
            torch.from_numpy(starts.astype(np.int64)).to(self.device),
            torch.from_numpy(lengths.astype(np.int64)).to(self.device),
            frames,
            whole,
            None if soft is None else self.soft(ids, soft),
            torch.from_numpy(self.clips.has_frames[clips]).to(self.device),
        )

    def soft(self, ids: list[str], soft: SoftSource) -> Float[Tensor, "batch classes frames"]:
        """Soft labels of whole clips (cuts that begin at 0)."""
        return torch.as_tensor(soft.rows(ids), dtype=torch.float32).to(self.device)


class Loader:
    """Training batches. ``batch(step)`` depends on (seed, step) and nothing else.

    Clips longer than a cut are cut at a random label frame and their labels move with the cut, if the recipe says
    random_crop and nothing is distilled (soft labels belong to the clip's first frames).

    Args:
        clips: what to draw from.
        recipe: epoch_clips, batch_size, sampler, sampler_offset, replacement, random_crop, augment.wavmix(_alpha).
        soft: the ensemble's probabilities, for distillation.
        device, resident: see :class:`Cutter`.
    """

    def __init__(
        self,
        clips: ClipSet,
        recipe: Recipe,
        *,
        seed: int,
        n_frames: int = CLIP_FRAMES,
        soft: SoftSource | None = None,
        device: torch.device | str = "cpu",
        resident: bool = False,
    ) -> None:
        if len(clips) == 0:
            raise ValueError("a loader needs at least one clip")
        self.clips, self.recipe, self.seed, self.soft_source = clips, recipe, seed, soft
        self.cutter = Cutter(clips, n_frames, device=device, resident=resident)
        self.steps_per_epoch = -(-recipe.epoch_clips // recipe.batch_size)
        self._slack = np.maximum(clips.samples // HOP - n_frames, 0)
        if soft is not None or not recipe.random_crop:
            self._slack = np.zeros_like(self._slack)
        self._weights = self._sampling_weights() if recipe.sampler == "balanced" else None
        self.order = lru_cache(maxsize=2)(self._order)

    def _sampling_weights(self) -> np.ndarray:
        clip, label, amount = self.clips.activity()
        weights = balanced_weights(
            clip, label, amount, len(self.clips), len(self.clips.classes), offset=self.recipe.sampler_offset
        )
        if not weights.any():
            raise ValueError("balanced sampling needs labels, and no clip has any")
        return weights

    def _order(self, epoch: int) -> np.ndarray:
        """Clips of an epoch in their order: int64 [epoch_clips]."""
        rng = np.random.default_rng([self.seed, _ORDER, epoch])
        n, wanted = len(self.clips), self.recipe.epoch_clips
        if self._weights is not None and self.recipe.replacement:
            total = np.cumsum(self._weights)
            drawn = np.searchsorted(total, rng.random(wanted) * total[-1], side="right")
            return np.minimum(drawn, np.flatnonzero(self._weights)[-1])
        rounds = []
        for _ in range(-(-wanted // n)):
            if self._weights is None:
                rounds.append(rng.permutation(n))
            else:  # sampling without replacement, in order: the smallest of exponential times, rate = weight
                with np.errstate(divide="ignore"):
                    rounds.append(np.argsort(rng.standard_exponential(n) / self._weights, kind="stable"))
        return np.concatenate(rounds)[:wanted]

    def batch(self, step: int) -> Batch:
        """Batch of optimiser step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.recipe.batch_size
        clips = self.order(epoch)[within * size : (within + 1) * size]
        rng = np.random.default_rng([self.seed, _STEP, step])
        starts = rng.integers(0, self._slack[clips] + 1)
        batch = self.cutter.batch(clips, starts, self.soft_source)
        return self._mix(batch, rng) if self.recipe.augment.wavmix > 0 else batch

    def _mix(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Mix other clips' waveforms into some of the batch (FSD of the authors' loader): l ~ Beta, at least one half.

        Both means are removed before, the mean of the sum after; labels and soft labels are mixed with the same l.
        """
        augment, n = self.recipe.augment, len(batch)
        drawn = np.flatnonzero(rng.random(n) < augment.wavmix)
        partner = rng.integers(0, len(self.clips), n)[drawn]
        share = rng.beta(augment.wavmix_alpha, augment.wavmix_alpha, n)[drawn]
        starts = rng.integers(0, self._slack[partner] + 1)
        if len(drawn) == 0:
            return batch
        other = self.cutter.batch(partner, starts, self.soft_source)
        rows = torch.from_numpy(drawn).to(self.cutter.device)
        first = torch.from_numpy(np.maximum(share, 1 - share)).float().to(self.cutter.device)

        def mixed(mine: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if mine is None or theirs is None:
                return mine
            weight = first.view(-1, *[1] * (mine.ndim - 1))
            return mine.index_copy(0, rows, mine[rows] * weight + theirs * (1 - weight))

        wave = _centred(batch.waveform[rows]) * first[:, None] + _centred(other.waveform) * (1 - first[:, None])
        lengths = batch.lengths.index_copy(0, rows, torch.maximum(batch.lengths[rows], other.lengths))
        return Batch(
            batch.ids,
            batch.waveform.index_copy(0, rows, _centred(wave)),
            batch.starts,
            lengths,
            mixed(batch.frame_labels, other.frame_labels),
            mixed(batch.clip_labels, other.clip_labels),
            mixed(batch.soft_labels, other.soft_labels),
            batch.has_frame_labels,
        )

    def batches(self, start: int, stop: int, *, prefetch: int = 1) -> Iterator[Batch]:
        """Batches of steps `start` … `stop` - 1, made by a thread up to `prefetch` ahead (0: no thread)."""
        return prefetched(self.batch, start, stop, prefetch)


def _centred(wave: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    return wave - wave.mean(1, keepdim=True)


class MixedLoader:
    """Batches of fixed composition from several loaders, such as 128 strong and 128 weak clips (DESED)."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = list(loaders)
        self.steps_per_epoch = self.loaders[0].steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The loaders' batches of `step`, one after the other."""
        return concatenate([loader.batch(step) for loader in self.loaders])

    def batches(self, start: int, stop: int, *, prefetch: int = 1) -> Iterator[Batch]:
        """As :meth:`Loader.batches`."""
        return prefetched(self.batch, start, stop, prefetch)


def prefetched(make, start: int, stop: int, prefetch: int) -> Iterator:
    """``make(step)`` for each step, in order; an error in the thread is raised here."""
    if prefetch < 1:
        yield from map(make, range(start, stop))
        return
    ready: queue.Queue = queue.Queue(maxsize=prefetch)
    left = threading.Event()

    def put(item: tuple) -> bool:
        while not left.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        for step in range(start, stop):
            try:
                item = (make(step), None)
            except BaseException as error:  # noqa: BLE001 - it is raised again where the batch is awaited
                item = (None, error)
            if not put(item) or item[1] is not None:
                return

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        left.set()
        thread.join()


def chunks(
    clips: ClipSet,
    batch_size: int,
    *,
    n_frames: int = CLIP_FRAMES,
    soft: SoftSource | None = None,
    device: torch.device | str = "cpu",
    prefetch: int = 1,
) -> Iterator[Batch]:
    """All clips in order, for evaluation: the first `n_frames` of each, zeros after the end, never at random."""
    cutter = Cutter(clips, n_frames, device=device)

    def make(k: int) -> Batch:
        rows = np.arange(k * batch_size, min((k + 1) * batch_size, len(clips)))
        return cutter.batch(rows, np.zeros(len(rows), np.int64), soft)

    return prefetched(make, 0, -(-len(clips) // batch_size), prefetch)


def windows(
    clips: ClipSet,
    batch_size: int,
    *,
    n_frames: int = CLIP_FRAMES,
    hop_frames: int | None = None,
    device: torch.device | str = "cpu",
    prefetch: int = 1,
) -> Iterator[Batch]:
    """Successive cuts that cover whole clips, in order; `starts` says where each begins (label frames)."""
    cutter, hop = Cutter(clips, n_frames, device=device), hop_frames or n_frames
    counts = np.maximum(-(-np.maximum(-(-clips.samples // HOP) - n_frames, 0) // hop) + 1, 1)
    rows = np.repeat(np.arange(len(clips)), counts)
    starts = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * hop

    def make(k: int) -> Batch:
        part = slice(k * batch_size, (k + 1) * batch_size)
        return cutter.batch(rows[part], starts[part])

    return prefetched(make, 0, -(-len(rows) // batch_size), prefetch)
