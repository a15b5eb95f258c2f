"""Which clips make up each batch: training batches as functions of (seed, step), and evaluation in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from framekd.config import TrainRecipe
from framekd.data.batch import Batch, Cutter, Mix, SoftSource, concatenate
from framekd.data.clips import ClipSet
from framekd.events import balanced_weights
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES

_ORDER, _STEP = 1, 2  # random streams: order of an epoch, draws of a step


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
        device, resident: see :class:`Cutter`.
    Attributes:
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
        device: torch.device | str = "cpu",
        resident: bool = False,
    ) -> None:
        if len(clips) == 0:
            raise ValueError("a loader needs at least one clip")
        self.clips, self.recipe, self.seed, self.soft_source = clips, recipe, seed, soft
        self.cutter = Cutter(clips, n_frames, device=device, resident=resident)
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

    def batch(self, step: int) -> Batch:
        """Batch of optimiser step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = self.recipe.batch_size
        clips = self.order(epoch)[within * size : (within + 1) * size]
        rng = np.random.default_rng([self.seed, _STEP, step])
        starts = rng.integers(0, self._slack[clips] + 1)
        mix = self._mix(len(clips), rng) if self.recipe.augment.wavmix > 0 else None
        gain = self._gain(len(clips), rng)
        if mix is not None:
            mix = replace(mix, gain=self._gain(len(mix.rows), rng))
        return self.cutter.batch(clips, starts, soft=self.soft_source, mix=mix, gain=gain)

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

    def batches(self, start: int, stop: int, *, prefetch: int = 1) -> Iterator[Batch]:
        """Batches of steps `start` to `stop` - 1; a thread makes up to `prefetch` of them ahead (0: no thread)."""
        return prefetched(self.batch, start, stop, prefetch)


class MixedLoader:
    """Batches that join one batch of each loader, such as 128 strong and 128 weak clips (DESED)."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = list(loaders)
        self.steps_per_epoch = self.loaders[0].steps_per_epoch
        self.steps = self.loaders[0].steps

    def batch(self, step: int) -> Batch:
        """The batches of optimiser step `step` of all loaders, joined in the loaders' order."""
        return concatenate([loader.batch(step) for loader in self.loaders])

    def batches(self, start: int, stop: int, *, prefetch: int = 1) -> Iterator[Batch]:
        """As :meth:`Loader.batches`."""
        return prefetched(self.batch, start, stop, prefetch)


def prefetched(make, start: int, stop: int, prefetch: int) -> Iterator:
    """Yield ``make(step)`` for each step, in order; an exception in the thread is raised by the iterator."""
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
                item: tuple = (make(step), None)
            except BaseException as error:  # noqa: BLE001 - raised again by the iterator
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
    """All clips in order, for evaluation: the first `n_frames` label frames of each, padded with zeros at the end."""
    cutter = Cutter(clips, n_frames, device=device)

    def make(k: int) -> Batch:
        rows = np.arange(k * batch_size, min((k + 1) * batch_size, len(clips)))
        return cutter.batch(rows, np.zeros(len(rows), np.int64), soft=soft)

    return prefetched(make, 0, -(-len(clips) // batch_size), prefetch)


def windows(
    clips: ClipSet,
    batch_size: int,
    *,
    n_frames: int = CLIP_FRAMES,
    device: torch.device | str = "cpu",
    prefetch: int = 1,
) -> Iterator[Batch]:
    """Successive cuts of `n_frames` label frames that cover whole clips, in order; at least one per clip."""
    cutter = Cutter(clips, n_frames, device=device)
    counts = np.maximum(-(-clips.samples // (n_frames * FRAME_SAMPLES)), 1)
    rows = np.repeat(np.arange(len(clips)), counts)
    starts = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)) * n_frames

    def make(k: int) -> Batch:
        part = slice(k * batch_size, (k + 1) * batch_size)
        return cutter.batch(rows[part], starts[part])

    return prefetched(make, 0, -(-len(rows) // batch_size), prefetch)
