"""Batches of clips: the cuts of clips to one length, their labels, and the mixing of two clips into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from framekd.data.clips import ClipSet
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES

_SCALE = np.float32(1 / 32768)


@dataclass(frozen=True)
class Batch:
    """Clips of equal length, padded with zeros at the end.

    Attributes:
        ids: clip ids.
        waveform: samples at 16 kHz in -1..1.
        starts: label frame of the clip at which the cut begins; 0 unless the clip is longer than the cut.
        lengths: samples before the padding.
        frame_labels: 0..1 (fractions after mixing), zeros where `has_frame_labels` is false; None if no clip has any.
        clip_labels: 0..1; for clips with frame labels, the classes that are active within the cut.
        soft_labels: probabilities of the ensemble, of frames or of clips: zeros for clips that it lacks, NaN for
            classes that it lacks; None without distillation.
        has_frame_labels: whether each clip has frame labels.
        soft_share: the part of each clip that has soft labels: 0 or 1, a fraction after mixing; None without
            distillation.
    """

    ids: list[str]
    waveform: Float[Tensor, "batch samples"]
    starts: Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]
    frame_labels: Float[Tensor, "batch classes frames"] | None
    clip_labels: Float[Tensor, "batch classes"] | None
    soft_labels: Float[Tensor, "batch classes *frames"] | None
    has_frame_labels: Bool[Tensor, " batch"]
    soft_share: Float[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to `device`."""
        device = torch.device(device)
        if self.waveform.device == device:
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), self.ids)

    def __getitem__(self, part: slice) -> Batch:
        """A part of the batch; tensors are views."""
        return self._map(lambda tensor: tensor[part], self.ids[part])

    def _map(self, change: Callable[[Tensor], Tensor], ids: list[str]) -> Batch:
        """Apply `change` to every tensor."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in given.items()}
        return Batch(**{**changed, "ids": ids})


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Join batches into one, such as strong and weak clips of one step.

    Frame labels are zeros for the clips of batches that have none.

    Raises:
        ValueError: different numbers of classes, or soft labels in some batches only.
    """
    n_classes = {b.clip_labels.shape[1] for b in batches if b.clip_labels is not None}
    if len(n_classes) > 1:
        raise ValueError(f"batches of {sorted(n_classes)} classes cannot be one batch")
    soft = [b.soft_labels for b in batches]
    if any(s is None for s in soft) and any(s is not None for s in soft):
        raise ValueError("soft labels must be in all parts of a batch or in none")
    shape = next((b.frame_labels.shape[1:] for b in batches if b.frame_labels is not None), None)

    def frames(b: Batch) -> Tensor:
        return b.waveform.new_zeros((len(b), *(shape or ()))) if b.frame_labels is None else b.frame_labels

    def joined(name: str) -> Tensor | None:
        parts = [getattr(b, name) for b in batches]
        return None if any(p is None for p in parts) else torch.cat(parts)

    return Batch(
        [name for b in batches for name in b.ids],
        torch.cat([b.waveform for b in batches]),
        torch.cat([b.starts for b in batches]),
        torch.cat([b.lengths for b in batches]),
        None if shape is None else torch.cat([frames(b) for b in batches]),
        joined("clip_labels"),
        joined("soft_labels"),
        torch.cat([b.has_frame_labels for b in batches]),
        joined("soft_share"),
    )


class SoftSource(Protocol):
    """Gives the ensemble's soft labels by clip."""

    def rows(self, ids: Sequence[str], /) -> np.ndarray | Tensor:
        """Probabilities, float32 [clips, classes, frames] or [clips, classes]; rows of NaN for clips without any."""


@dataclass(frozen=True)
class Mix:
    """What is mixed into a batch: row = share * row + (1 - share) * partner, for waveforms and labels.

    Attributes:
        rows: [mixed] int64, rows of the batch.
        partners: [mixed] int64, positions of the other clips in the set.
        starts: [mixed] int64, label frames at which the partners are cut.
        share: [mixed] float32, 0.5..1.
        gain: [mixed] float32, factors of the partners' waveforms; None is no gain.
    """

    rows: np.ndarray
    partners: np.ndarray
    starts: np.ndarray
    share: np.ndarray
    gain: np.ndarray | None = None


class Cutter:
    """Makes batches from cuts of equal length of the clips of a set.

    Args:
        n_frames: length of a cut in label frames; shorter clips are padded with zeros at the end.
        device: where batches are assembled.
        resident: keep all audio as int16 in the memory of `device`.
    """

    def __init__(
        self, clips: ClipSet, n_frames: int = CLIP_FRAMES, *, device: torch.device | str = "cpu", resident: bool = False
    ) -> None:
        self.clips, self.n_frames, self.device = clips, n_frames, torch.device(device)
        self.n_samples = n_frames * FRAME_SAMPLES
        self.n_classes = len(clips.classes)
        self.compact = self.device.type != "cpu"
        self._any_frames = bool(clips.has_frames.any())
        self._resident = self._load() if resident else None

    def _load(self) -> Tensor:
        """All clips as one tensor, int16 [clips, longest], padded with zeros at the end."""
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
        """Cuts of `clips` that begin at the label frames `starts`, in -1..1, on the device."""
        if self._resident is not None:
            return self._gather(self._resident, clips, starts)
        if self.compact:
            return self.stored(clips, starts).to(self.device).float().mul_(float(_SCALE))
        out = torch.empty((len(clips), self.n_samples), dtype=torch.float32)
        self._fill(out.numpy(), clips, starts, _SCALE)
        return out

    def stored(self, clips: np.ndarray, starts: np.ndarray) -> Int16[Tensor, "batch samples"]:
        """As `waveforms`, but int16 on the CPU: half the bytes to copy to another device."""
        out = torch.empty((len(clips), self.n_samples), dtype=torch.int16)
        self._fill(out.numpy(), clips, starts, np.int16(1))
        return out

    def _fill(self, out: np.ndarray, clips: np.ndarray, starts: np.ndarray, scale: np.generic) -> None:
        for row, clip, start in zip(out, clips.tolist(), (starts * FRAME_SAMPLES).tolist()):
            samples = self.clips.waveform(clip)[start : start + self.n_samples]
            np.multiply(samples, scale, out=row[: len(samples)])
            row[len(samples) :] = 0

    def _gather(self, audio: Tensor, clips: np.ndarray, starts: np.ndarray) -> Float[Tensor, "batch samples"]:
        index = torch.from_numpy(clips).to(self.device)
        if not starts.any():
            return audio[index, : self.n_samples].float().mul_(float(_SCALE))
        begin = torch.from_numpy(starts * FRAME_SAMPLES).to(self.device)
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
        """The cuts of `clips` (positions in the set) that begin at the label frames `starts`, mixed as `mix` says.

        Waveforms are multiplied by `gain` ([clips] float32) before they are mixed.
        """
        ids = [self.clips.ids[i] for i in clips.tolist()]
        wave = self.waveforms(clips, starts)
        if gain is not None:
            wave.mul_(self._tensor(gain)[:, None])
        lengths = np.clip(self.clips.samples[clips] - starts * FRAME_SAMPLES, 0, self.n_samples)
        probabilities, known = (None, None) if soft is None else self.soft(ids, soft)
        share = np.ones(len(clips), np.float32)
        if mix is not None:
            share[mix.rows] = mix.share
            self._mix_waves(wave, mix)
            theirs = np.clip(self.clips.samples[mix.partners] - mix.starts * FRAME_SAMPLES, 0, self.n_samples)
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
        """Frame labels (None if no clip of the set has any) and clip labels of cuts, multiplied by `share`."""
        shape = (len(clips), self.n_classes, self.n_frames)
        frames = torch.zeros(shape, device=self.device) if self._any_frames else None
        whole = torch.zeros(shape[:2], device=self.device)
        self._add(frames, whole, np.arange(len(clips)), clips, starts, share)
        if mix is not None:
            self._add(frames, whole, mix.rows, mix.partners, mix.starts, 1 - mix.share)
        return frames, whole

    def _add(self, frames: Tensor | None, whole: Tensor, rows, clips, starts, weight) -> None:
        """Add `weight` at the labels of cuts to rows of `frames` and `whole`; only indices are copied to the device."""
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
            # Spans of a class do not overlap (see clip_set), so no index occurs twice and the sum is exact.
            self._add_at(frames, first + np.arange(len(first)), np.repeat(weight[cut], length))

    def _add_at(self, target: Tensor, places: np.ndarray, values: np.ndarray) -> None:
        target.view(-1).index_add_(0, self._tensor(places), self._tensor(values))

    def _mix_waves(self, wave: Tensor, mix: Mix) -> None:
        """Mix partners into rows of `wave`, in place. The means of both are removed, so the sum has zero mean too."""
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
        """Soft labels of clips, for cuts that begin at 0: zeros for clips without any; and which clips have some."""
        values = torch.as_tensor(soft.rows(ids), dtype=torch.float32)
        known = ~values.flatten(2)[..., 0].isnan().all(1) if values.ndim > 2 else ~values.isnan().all(1)
        if not bool(known.all()):
            values = values.clone()
            values[~known] = 0.0
        return values.to(self.device), known.float().to(self.device)
