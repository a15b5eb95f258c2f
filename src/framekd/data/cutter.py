"""Cuts of equal length from a set of clips: waveforms, labels and the mixing of two clips into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.data.batch import Batch
from framekd.data.clips import ClipSet
from framekd.events import CLIP_FRAMES

HOP = 640
"""Samples per label frame."""
_SCALE = np.float32(1 / 32768)


class SoftSource(Protocol):
    """The ensemble's soft labels."""

    def rows(self, ids: Sequence[str], /) -> np.ndarray | Tensor:
        """Probabilities, float32 [clips, classes, frames]."""


@dataclass(frozen=True)
class Mix:
    """Other cuts to be mixed into rows of a batch: row = share x row + (1 - share) x partner, labels alike."""

    rows: np.ndarray
    partners: np.ndarray
    starts: np.ndarray
    share: np.ndarray


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
        self._any_frames = bool(clips.has_frames.any())
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
            return self._gather(self._resident, clips, starts)
        out = torch.empty((len(clips), self.n_samples), dtype=torch.float32)
        for row, clip, start in zip(out.numpy(), clips.tolist(), (starts * HOP).tolist()):
            samples = self.clips.waveform(clip)[start : start + self.n_samples]
            np.multiply(samples, _SCALE, out=row[: len(samples)])
            row[len(samples) :] = 0
        return out.to(self.device)

    def _gather(self, audio: Tensor, clips: np.ndarray, starts: np.ndarray) -> Float[Tensor, "batch samples"]:
        index = torch.from_numpy(clips).to(self.device)
        if not starts.any():
            return audio[index, : self.n_samples].float().mul_(float(_SCALE))
        begin = torch.from_numpy(starts * HOP).to(self.device)
        column = begin[:, None] + torch.arange(self.n_samples, device=self.device)
        return audio[index[:, None], column.clamp_(max=audio.shape[1] - 1)].float().mul_(float(_SCALE))

    def add_labels(self, clip: int, start: int, weight: float, frames: np.ndarray | None, whole: np.ndarray) -> None:
        """Add `weight` to the labels of one cut: frames [classes, frames] and whole [classes], in place."""
        source = self.clips
        part = slice(source.start[clip], source.start[clip + 1])
        label = source.label[part]
        if frames is None or not source.has_frames[clip]:
            whole[label] += weight
            return
        begin = np.maximum(source.begin[part] - start, 0)
        end = np.minimum(source.end[part] - start, self.n_frames)
        inside = begin < end
        if not inside.all():
            label, begin, end = label[inside], begin[inside], end[inside]
        # Spans of a class do not overlap (see clip_set), so adding is exact.
        for c, a, b in zip(label.tolist(), begin.tolist(), end.tolist()):
            frames[c, a:b] += weight
        whole[np.unique(label)] += weight

    def batch(
        self, clips: np.ndarray, starts: np.ndarray, *, soft: SoftSource | None = None, mix: Mix | None = None
    ) -> Batch:
        """The cuts of `clips` at `starts` (label frames), some of them mixed with others."""
        ids = [self.clips.ids[i] for i in clips.tolist()]
        wave = self.waveforms(clips, starts)
        lengths = np.clip(self.clips.samples[clips] - starts * HOP, 0, self.n_samples)
        probabilities = None if soft is None else self.soft(ids, soft)
        share = np.ones(len(clips), np.float32)
        if mix is not None:
            share[mix.rows] = mix.share
            self._mix_waves(wave, mix)
            theirs = np.clip(self.clips.samples[mix.partners] - mix.starts * HOP, 0, self.n_samples)
            lengths[mix.rows] = np.maximum(lengths[mix.rows], theirs)
            if soft is not None and probabilities is not None:
                other = self.soft([self.clips.ids[i] for i in mix.partners.tolist()], soft)
                rows, weight = self._tensor(mix.rows), self._tensor(mix.share)[:, None, None]
                probabilities[rows] = probabilities[rows] * weight + other * (1 - weight)
        frames, whole = self.labels(clips, starts, share, mix)
        return Batch(
            ids,
            wave,
            self._tensor(starts.astype(np.int64)),
            self._tensor(lengths.astype(np.int64)),
            frames,
            whole,
            probabilities,
            self._tensor(self.clips.has_frames[clips]),
        )

    def labels(
        self, clips: np.ndarray, starts: np.ndarray, share: np.ndarray, mix: Mix | None
    ) -> tuple[Float[Tensor, "batch classes frames"] | None, Float[Tensor, "batch classes"]]:
        """Frame labels (None if no clip of the set has any) and clip labels of cuts, weighted by `share`."""
        shape = (len(clips), self.n_classes, self.n_frames)
        frames = np.zeros(shape, np.float32) if self._any_frames else None
        whole = np.zeros(shape[:2], np.float32)

        def add(k: int, clip: int, start: int, weight: float) -> None:
            self.add_labels(clip, start, weight, None if frames is None else frames[k], whole[k])

        for k, clip, start, weight in zip(range(len(clips)), clips.tolist(), starts.tolist(), share.tolist()):
            add(k, clip, start, weight)
        if mix is not None:
            columns = (mix.rows, mix.partners, mix.starts, 1 - mix.share)
            for k, clip, start, weight in zip(*(column.tolist() for column in columns)):
                add(k, clip, start, weight)
        return None if frames is None else self._tensor(frames), self._tensor(whole)

    def _mix_waves(self, wave: Tensor, mix: Mix) -> None:
        """Mix partners into rows of `wave`, in place. Both means are removed, and so the sum has none either."""
        mine, theirs = wave[self._tensor(mix.rows)], self.waveforms(mix.partners, mix.starts)
        weight = self._tensor(mix.share)[:, None]
        mine.sub_(mine.mean(1, keepdim=True)).mul_(weight)
        theirs.sub_(theirs.mean(1, keepdim=True)).mul_(1 - weight)
        wave[self._tensor(mix.rows)] = mine.add_(theirs)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def soft(self, ids: list[str], soft: SoftSource) -> Float[Tensor, "batch classes frames"]:
        """Soft labels of whole clips (cuts that begin at 0)."""
        return torch.as_tensor(soft.rows(ids), dtype=torch.float32).to(self.device)
