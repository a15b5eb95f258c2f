"""Cuts of equal length from a set of clips: waveforms, labels and the mixing of two clips into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int16
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
        """Probabilities, float32 [clips, classes, frames] or [clips, classes]; rows of NaN for clips without any."""


@dataclass(frozen=True)
class Mix:
    """Other cuts to be mixed into rows of a batch: row = share x row + (1 - share) x partner, labels alike.

    `gain` is what the waveforms of the partners are multiplied by; None is nothing.
    """

    rows: np.ndarray
    partners: np.ndarray
    starts: np.ndarray
    share: np.ndarray
    gain: np.ndarray | None = None


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
        self.compact = self.device.type != "cpu"
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
        if self.compact:
            return self.stored(clips, starts).to(self.device).float().mul_(float(_SCALE))
        out = torch.empty((len(clips), self.n_samples), dtype=torch.float32)
        self._fill(out.numpy(), clips, starts, _SCALE)
        return out

    def stored(self, clips: np.ndarray, starts: np.ndarray) -> Int16[Tensor, "batch samples"]:
        """Cuts as they are stored: in this form, and half the bytes, they travel to another device."""
        out = torch.empty((len(clips), self.n_samples), dtype=torch.int16)
        self._fill(out.numpy(), clips, starts, np.int16(1))
        return out

    def _fill(self, out: np.ndarray, clips: np.ndarray, starts: np.ndarray, scale: np.generic) -> None:
        for row, clip, start in zip(out, clips.tolist(), (starts * HOP).tolist()):
            samples = self.clips.waveform(clip)[start : start + self.n_samples]
            np.multiply(samples, scale, out=row[: len(samples)])
            row[len(samples) :] = 0

    def _gather(self, audio: Tensor, clips: np.ndarray, starts: np.ndarray) -> Float[Tensor, "batch samples"]:
        index = torch.from_numpy(clips).to(self.device)
        if not starts.any():
            return audio[index, : self.n_samples].float().mul_(float(_SCALE))
        begin = torch.from_numpy(starts * HOP).to(self.device)
        column = begin[:, None] + torch.arange(self.n_samples, device=self.device)
        return audio[index[:, None], column.clamp_(max=audio.shape[1] - 1)].float().mul_(float(_SCALE))

    def batch(
        self,
        clips: np.ndarray,
        starts: np.ndarray,
        *,
        soft: SoftSource | None = None,
        mix: Mix | None = None,
        gain: np.ndarray | None = None,
    ) -> Batch:
        """The cuts of `clips` at `starts` (label frames), multiplied by `gain`, some of them mixed with others."""
        ids = [self.clips.ids[i] for i in clips.tolist()]
        wave = self.waveforms(clips, starts)
        if gain is not None:
            wave.mul_(self._tensor(gain)[:, None])
        lengths = np.clip(self.clips.samples[clips] - starts * HOP, 0, self.n_samples)
        probabilities, known = (None, None) if soft is None else self.soft(ids, soft)
        share = np.ones(len(clips), np.float32)
        if mix is not None:
            share[mix.rows] = mix.share
            self._mix_waves(wave, mix)
            theirs = np.clip(self.clips.samples[mix.partners] - mix.starts * HOP, 0, self.n_samples)
            lengths[mix.rows] = np.maximum(lengths[mix.rows], theirs)
            if soft is not None and probabilities is not None and known is not None:
                other, theirs_known = self.soft([self.clips.ids[i] for i in mix.partners.tolist()], soft)
                rows, part = self._tensor(mix.rows), self._tensor(mix.share)
                weight = part.view(-1, *[1] * (probabilities.ndim - 1))
                probabilities[rows] = probabilities[rows] * weight + other * (1 - weight)
                known[rows] = known[rows] * part + theirs_known * (1 - part)
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
            known,
        )

    def labels(
        self, clips: np.ndarray, starts: np.ndarray, share: np.ndarray, mix: Mix | None
    ) -> tuple[Float[Tensor, "batch classes frames"] | None, Float[Tensor, "batch classes"]]:
        """Frame labels (None if no clip of the set has any) and clip labels of cuts, weighted by `share`."""
        shape = (len(clips), self.n_classes, self.n_frames)
        frames = torch.zeros(shape, device=self.device) if self._any_frames else None
        whole = torch.zeros(shape[:2], device=self.device)
        self._add(frames, whole, np.arange(len(clips)), clips, starts, share)
        if mix is not None:
            self._add(frames, whole, mix.rows, mix.partners, mix.starts, 1 - mix.share)
        return frames, whole

    def _add(self, frames: Tensor | None, whole: Tensor, rows, clips, starts, weight) -> None:
        """Add the labels of cuts, times `weight`, to rows of `frames` and `whole`: only places travel to the device."""
        source = self.clips
        counts = source.start[clips + 1] - source.start[clips]
        cut = np.repeat(np.arange(len(clips)), counts)
        event = np.repeat(source.start[clips] - (np.cumsum(counts) - counts), counts) + np.arange(len(cut))
        label, timed = source.label[event].astype(np.int64), source.has_frames[clips][cut]
        begin = np.maximum(source.begin[event] - starts[cut], 0)
        end = np.minimum(source.end[event] - starts[cut], self.n_frames)
        there = ~timed | (begin < end)
        cut, label, timed, begin, length = cut[there], label[there], timed[there], begin[there], (end - begin)[there]
        place = rows[cut] * self.n_classes + label
        fresh = np.ones(len(place), bool)
        fresh[1:] = place[1:] != place[:-1]  # events are sorted by class within a clip
        self._add_at(whole, place[fresh], weight[cut[fresh]])
        if frames is not None:
            place, begin, length, cut = place[timed], begin[timed], length[timed], cut[timed]
            first = np.repeat(place * self.n_frames + begin - (np.cumsum(length) - length), length)
            # Spans of a class do not overlap (see clip_set): no place occurs twice, and adding is exact.
            self._add_at(frames, first + np.arange(len(first)), np.repeat(weight[cut], length))

    def _add_at(self, target: Tensor, places: np.ndarray, values: np.ndarray) -> None:
        target.view(-1).index_add_(0, self._tensor(places), self._tensor(values))

    def _mix_waves(self, wave: Tensor, mix: Mix) -> None:
        """Mix partners into rows of `wave`, in place. Both means are removed, and so the sum has none either."""
        mine, theirs = wave[self._tensor(mix.rows)], self.waveforms(mix.partners, mix.starts)
        if mix.gain is not None:
            theirs.mul_(self._tensor(mix.gain)[:, None])
        weight = self._tensor(mix.share)[:, None]
        mine.sub_(mine.mean(1, keepdim=True)).mul_(weight)
        theirs.sub_(theirs.mean(1, keepdim=True)).mul_(1 - weight)
        wave[self._tensor(mix.rows)] = mine.add_(theirs)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def soft(
        self, ids: list[str], soft: SoftSource
    ) -> tuple[Float[Tensor, "batch classes *frames"], Float[Tensor, " batch"]]:
        """Soft labels of whole clips (cuts that begin at 0), zeros for clips without any; and which clips have some."""
        values = torch.as_tensor(soft.rows(ids), dtype=torch.float32)
        known = ~values.flatten(2)[..., 0].isnan().all(1) if values.ndim > 2 else ~values.isnan().all(1)
        if not bool(known.all()):
            values = values.clone()
            values[~known] = 0.0
        return values.to(self.device), known.float().to(self.device)
