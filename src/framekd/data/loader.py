"""Which clips make up each batch: training batches as functions of (seed, step), and evaluation in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

from framekd.config import TrainRecipe
from framekd.data.batch import Batch, concatenate
from framekd.data.clips import ClipSet
from framekd.data.cutter import Cutter
from framekd.data.gather import Draw, Gathered, Mix, SoftSource
from framekd.data.resident import AudioOn, choose
from framekd.events import balanced_weights
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES

_ORDER, _STEP = 1, 2  # random streams: order of an epoch, draws of a step
AHEAD, THREADS = 3, 4
"""Batches that are gathered ahead of a GPU, and threads that gather them at most."""
Item = TypeVar("Item")
Rows = Callable[[int], slice]
"""``rows(size)``: the rows of a batch of `size` clips that this process computes."""


def _all(size: int) -> slice:
    return slice(0, size)


def _rows(first: int, last: int, size: int) -> slice:
    return slice(first, last)


class Loader:
    """Training batches. ``batch(step)`` depends only on the seed and the step, not on threads or earlier batches.

    Clips longer than a cut are cut at a random label frame if the recipe has random_crop and there are no soft labels,
    which exist only for the first frames of a clip. Labels move with the cut.

    Args:
        clips: the training set.
        recipe: epochs, epoch_clips, batch_size, sampler, sampler_offset, replacement, random_crop, augment.wavmix,
            augment.wavmix_alpha and augment.gain_db are used.
        n_frames: length of a cut in label frames.
        soft: soft labels, for distillation.
        audio_on: where the audio and the soft labels of the set are kept: see :func:`framekd.data.resident.choose`.
    Attributes:
        n_frames: length of a cut in label frames.
        steps_per_epoch: optimiser steps of an epoch.
        steps: optimiser steps of the whole training.
    Raises:
        ValueError: no clips, or balanced sampling of clips without labels.
    """

    def __init__(
        self,
        clips: ClipSet,
        recipe: TrainRecipe,
        *,
        seed: int,
        n_frames: int = CLIP_FRAMES,
        soft: SoftSource | None = None,
        audio_on: AudioOn = "host",
    ) -> None:
        if len(clips) == 0:
            raise ValueError("a loader needs at least one clip")
        self.clips, self.recipe, self.seed, self.soft_source = clips, recipe, seed, soft
        self.cutter, self.audio_on, self.n_frames = Cutter(clips, n_frames, soft=soft), audio_on, n_frames
        self.steps_per_epoch = -(-recipe.epoch_clips // recipe.batch_size)
        self.steps = recipe.epochs * self.steps_per_epoch
        self._slack = np.maximum(clips.samples // FRAME_SAMPLES - n_frames, 0)
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
        """Positions of the clips of an epoch, in order: int64 [epoch_clips]."""
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
            else:  # without replacement: clips in the order of exponential times whose rates are the weights
                with np.errstate(divide="ignore"):
                    rounds.append(np.argsort(rng.standard_exponential(n) / self._weights, kind="stable"))
        return np.concatenate(rounds)[:wanted]

    def draw(self, step: int) -> Draw:
        """What the batch of optimiser step `step` is, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.recipe.batch_size
        clips = self.order(epoch)[within * size : (within + 1) * size]
        rng = np.random.default_rng([self.seed, _STEP, step])
        starts = rng.integers(0, self._slack[clips] + 1)
        mix = self._mix(len(clips), rng) if self.recipe.augment.wavmix > 0 else None
        gain = self._gain(len(clips), rng)
        if mix is not None:
            mix = replace(mix, gain=self._gain(len(mix.rows), rng))
        return Draw(clips, starts, mix, gain)

    def size(self, step: int) -> int:
        """Clips of the batch of a step; the last one of an epoch may be smaller."""
        size = self.recipe.batch_size
        return min(size, self.recipe.epoch_clips - step % self.steps_per_epoch * size)

    def gather(self, step: int, rows: Rows = _all, *, pin: bool = False) -> Gathered:
        """The host's part of the own rows of a batch, in pinned memory with `pin`."""
        draw = self.draw(step)
        return self.cutter.gather(draw, rows=rows(len(draw.clips)), pin=pin)

    def assemble(self, given: Gathered) -> Batch:
        """A batch of what :meth:`gather` gave, once it is on the device."""
        return self.cutter.assemble(given)

    def move(self, device: torch.device) -> None:
        """Keep in the memory of `device` what `audio_on` says."""
        cutter = self.cutter
        cutter.resident = choose(self.audio_on, self.clips, cutter.gatherer.n_samples, cutter.soft, device)

    def batch(self, step: int, *, device: torch.device | str = "cpu", rows: Rows = _all) -> Batch:
        """Batch of optimiser step `step` on `device`, counted from 0 over all epochs."""
        return self.assemble(self.gather(step, rows).to(torch.device(device)))

    def _gain(self, n: int, rng: np.random.Generator) -> np.ndarray | None:
        """Factors of `n` waveforms, uniform in dB: float32; None without gain_db."""
        most = self.recipe.augment.gain_db
        return (10.0 ** (rng.uniform(-most, most, n) / 20.0)).astype(np.float32) if most > 0 else None

    def _mix(self, n: int, rng: np.random.Generator) -> Mix | None:
        """Draw what is mixed into a batch of `n` clips; None if nothing is."""
        augment = self.recipe.augment
        rows = np.flatnonzero(rng.random(n) < augment.wavmix)
        partners = rng.integers(0, len(self.clips), n)[rows]
        share = rng.beta(augment.wavmix_alpha, augment.wavmix_alpha, n)[rows]
        starts = rng.integers(0, self._slack[partners] + 1)
        if len(rows) == 0:
            return None
        return Mix(rows, partners, starts, np.maximum(share, 1 - share).astype(np.float32))

    def batches(
        self, start: int, stop: int, *, device: torch.device | str = "cpu", rows: Rows = _all, prefetch: int = AHEAD
    ) -> Iterator[Batch]:
        """Batches of steps `start` to `stop` - 1 on `device`.

        Args:
            rows: the rows of this process, of several that train together.
            prefetch: how many are gathered ahead (0: no thread).
        """
        return feed(self, start, stop, torch.device(device), rows, prefetch)


class MixedLoader:
    """Batches that join one batch of each loader, such as 128 strong and 128 weak clips (DESED)."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = list(loaders)
        self.steps_per_epoch = self.loaders[0].steps_per_epoch
        self.steps, self.n_frames = self.loaders[0].steps, self.loaders[0].n_frames

    def gather(self, step: int, rows: Rows = _all, *, pin: bool = False) -> list[Gathered]:
        """As :meth:`Loader.gather`, of each loader; the rows are those of the joined batch."""
        sizes = [loader.size(step) for loader in self.loaders]
        own, at, found = rows(sum(sizes)), 0, []
        for loader, size in zip(self.loaders, sizes):
            first, last = (min(max(place - at, 0), size) for place in (own.start, own.stop))
            found.append(loader.gather(step, partial(_rows, first, last), pin=pin))
            at += size
        return found

    def assemble(self, given: list[Gathered]) -> Batch:
        """The joined batch, in the loaders' order."""
        return concatenate([loader.assemble(part) for loader, part in zip(self.loaders, given)])

    def move(self, device: torch.device) -> None:
        """As :meth:`Loader.move`."""
        for loader in self.loaders:
            loader.move(device)

    def batch(self, step: int, *, device: torch.device | str = "cpu", rows: Rows = _all) -> Batch:
        """The batches of optimiser step `step` of all loaders, joined in the loaders' order."""
        device = torch.device(device)
        return self.assemble([part.to(device) for part in self.gather(step, rows)])

    def batches(
        self, start: int, stop: int, *, device: torch.device | str = "cpu", rows: Rows = _all, prefetch: int = AHEAD
    ) -> Iterator[Batch]:
        """As :meth:`Loader.batches`."""
        return feed(self, start, stop, torch.device(device), rows, prefetch)


def feed(loader: Any, start: int, stop: int, device: torch.device, rows: Rows, prefetch: int) -> Iterator[Batch]:
    """Batches of a loader. What it keeps on the device is loaded now; the bytes of a batch while a GPU computes."""
    loader.move(device)
    return _fed(loader, start, stop, device, rows, prefetch)


def _fed(loader: Any, start: int, stop: int, device: torch.device, rows: Rows, prefetch: int) -> Iterator[Batch]:
    if device.type != "cuda":  # one thread makes whole batches
        yield from prefetched(lambda step: loader.batch(step, device=device, rows=rows), start, stop, min(1, prefetch))
        return
    gathered = prefetched(lambda step: loader.gather(step, rows, pin=True), start, stop, prefetch, threads=_threads())
    stream, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    waiting: tuple[Any, torch.cuda.Event] | None = None
    for part in gathered:
        with torch.cuda.stream(stream):
            copied = [one.to(device) for one in part] if isinstance(part, list) else part.to(device)
            arrived = stream.record_event()
        if waiting is not None:
            yield _arrived(loader, *waiting, here)
        waiting = copied, arrived
    if waiting is not None:
        yield _arrived(loader, *waiting, here)


def _arrived(loader: Any, copied: Any, arrived: torch.cuda.Event, stream: torch.cuda.Stream) -> Batch:
    """The batch of copies, once they are there; the host does not wait."""
    stream.wait_event(arrived)
    for part in copied if isinstance(copied, list) else [copied]:
        for tensor in part.tensors():
            tensor.record_stream(stream)
    return loader.assemble(copied)


def _threads() -> int:
    """Threads that gather for one GPU: a core is left for the rest of each process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(THREADS, cores // max(1, torch.cuda.device_count()) - 1))


def prefetched(
    make: Callable[[int], Item], start: int, stop: int, prefetch: int, *, threads: int = 1
) -> Iterator[Item]:
    """Yield ``make(step)`` for each step, in order; `threads` make up to `prefetch` of them ahead (0: no thread).

    An exception in a thread is raised by the iterator.
    """
    if prefetch < 1:
        yield from map(make, range(start, stop))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    try:
        ahead = deque(pool.submit(make, step) for step in range(start, min(stop, start + prefetch)))
        for step in range(start + prefetch, stop + prefetch):
            item = ahead.popleft().result()
            if step < stop:
                ahead.append(pool.submit(make, step))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(
    clips: ClipSet,
    batch_size: int,
    *,
    n_frames: int = CLIP_FRAMES,
    soft: SoftSource | None = None,
    prefetch: int = 1,
) -> Iterator[Batch]:
    """All clips in order, for evaluation: the first `n_frames` label frames of each, padded with zeros at the end."""
    cutter = Cutter(clips, n_frames, soft=soft)

    def make(k: int) -> Batch:
        rows = np.arange(k * batch_size, min((k + 1) * batch_size, len(clips)))
        return cutter.batch(Draw(rows, np.zeros(len(rows), np.int64)))

    return prefetched(make, 0, -(-len(clips) // batch_size), prefetch)


def windows(
    clips: ClipSet,
    batch_size: int,
    *,
    n_frames: int = CLIP_FRAMES,
    prefetch: int = 1,
) -> Iterator[Batch]:
    """Successive cuts of `n_frames` label frames that cover whole clips, in order; at least one per clip."""
    cutter = Cutter(clips, n_frames)
    counts = np.maximum(-(-clips.samples // (n_frames * FRAME_SAMPLES)), 1)
    rows = np.repeat(np.arange(len(clips)), counts)
    starts = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * n_frames

    def make(k: int) -> Batch:
        part = slice(k * batch_size, (k + 1) * batch_size)
        return cutter.batch(Draw(rows[part], starts[part]))

    return prefetched(make, 0, -(-len(rows) // batch_size), prefetch)
