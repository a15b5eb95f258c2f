"""The host's part of a batch: which cuts, their samples and soft labels as stored, and the places of their labels.

The host only copies bytes and counts events. Everything else is done on the device: see :mod:`framekd.data.cutter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16
from torch import Tensor

from framekd.data.clips import ClipSet
from framekd.units import FRAME_SAMPLES

Empty = Callable[..., Tensor]
"""``empty(shape, dtype=…)``: a new tensor on the host, in pinned memory if it is copied to a GPU."""


class SoftSource(Protocol):
    """Gives the ensemble's soft labels by clip.

    A source may also have ``stored(ids, empty)``, which reads values as they are stored, and ``probabilities(stored)``,
    which makes them probabilities on any device. Then the host only reads them.
    """

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


@dataclass(frozen=True)
class Draw:
    """What a batch is.

    Attributes:
        clips: [batch] int64, positions in the set.
        starts: [batch] int64, label frames at which the cuts begin.
        mix: what is mixed into it; None is nothing.
        gain: [batch] float32, factors of the waveforms before they are mixed; None is no gain.
    """

    clips: np.ndarray
    starts: np.ndarray
    mix: Mix | None = None
    gain: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> Draw:
        """The draw of some rows, with the partners that are mixed into them."""
        mix, gain = self.mix, None if self.gain is None else self.gain[rows]
        if mix is not None:
            first, stop, _ = rows.indices(len(self.clips))
            here = (mix.rows >= first) & (mix.rows < stop)
            theirs = None if mix.gain is None else mix.gain[here]
            mix = Mix(mix.rows[here] - first, mix.partners[here], mix.starts[here], mix.share[here], theirs)
            mix = mix if here.any() else None
        return Draw(self.clips[rows], self.starts[rows], mix, gain)


@dataclass(frozen=True)
class Cuts:
    """Cuts of clips, as stored.

    Attributes:
        clips: positions in the set.
        starts: label frames at which the cuts begin.
        moved: whether any of them is not 0.
        audio: their samples, zeros after the end of a clip; None if the device has the audio of the whole set.
        soft: their soft labels as stored; None without any, or if the device has those of the whole set.
        gain: factors of the waveforms; None is no gain.
    """

    clips: Int[Tensor, " cuts"]
    starts: Int[Tensor, " cuts"]
    moved: bool
    audio: Int16[Tensor, "cuts samples"] | None
    soft: Tensor | None
    gain: Float[Tensor, " cuts"] | None


@dataclass(frozen=True)
class Marks:
    """Labels of all cuts of a batch by their places in it; a place is row * classes + class.

    Attributes:
        spans: place, first label frame and number of frames of each event with times.
        span_weights: the share of its cut in the row.
        frames: sum of the numbers of frames.
        places: places of the classes that a cut has at all, each once per cut.
        weights: the share of the cut in the row.
    """

    spans: Int[Tensor, "3 spans"]
    span_weights: Float[Tensor, " spans"]
    frames: int
    places: Int[Tensor, " places"]
    weights: Float[Tensor, " places"]


@dataclass(frozen=True)
class Gathered:
    """A batch as the host gives it.

    Attributes:
        ids: clip ids of the whole batch; everything else is of the rows of this process.
        mine: the cuts of the rows.
        theirs: the cuts that are mixed into the rows `rows`, whose own share is `share`; None is nothing.
        lengths: samples before the padding, of rows.
        has_frames: whether the clips have frame labels.
        marks: the labels of all cuts.
    """

    ids: list[str]
    mine: Cuts
    theirs: Cuts | None
    rows: Int[Tensor, " mixed"] | None
    share: Float[Tensor, " mixed"] | None
    lengths: Int[Tensor, " batch"]
    has_frames: Bool[Tensor, " batch"]
    marks: Marks

    def to(self, device: torch.device) -> Gathered:
        """Copy all tensors to `device`, without waiting for the copies from pinned memory."""
        return on(self, lambda tensor: tensor.to(device, non_blocking=True))

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        found: list[Tensor] = []
        on(self, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found


def on(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in its fields changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Gathered | Cuts | Marks):
        return type(value)(**{f.name: on(getattr(value, f.name), change) for f in fields(value)})
    return value


class Gatherer:
    """Reads batches of cuts of equal length from a set of clips. Threads may share it.

    Args:
        n_frames: length of a cut in label frames; shorter clips are padded with zeros at the end.
        stored: gives soft labels as stored, ``stored(ids, empty)``; None without any.
    """

    def __init__(self, clips: ClipSet, n_frames: int, stored: Callable[[Sequence[str], Empty], Tensor] | None) -> None:
        self.clips, self.n_frames, self.stored = clips, n_frames, stored
        self.n_samples, self.n_classes = n_frames * FRAME_SAMPLES, len(clips.classes)

    def __call__(
        self,
        draw: Draw,
        *,
        empty: Empty = torch.empty,
        rows: slice = slice(None),
        audio: bool = True,
        soft: bool = True,
    ) -> Gathered:
        """Read what the host gives of the rows `rows` of a batch.

        Args:
            draw: the whole batch.
            empty: makes the tensors.
            audio, soft: read these; False if the device has those of the whole set.
        """
        ids = [self.clips.ids[i] for i in draw.clips.tolist()]
        draw = draw[rows]
        mix, clips, starts = draw.mix, draw.clips, draw.starts
        lengths, share = self._lengths(clips, starts), np.ones(len(clips), np.float32)
        if mix is not None:
            lengths[mix.rows] = np.maximum(lengths[mix.rows], self._lengths(mix.partners, mix.starts))
            share[mix.rows] = mix.share

        def host(values: np.ndarray | None) -> Any:
            return None if values is None else _copied(values, empty)

        def cuts(clips: np.ndarray, starts: np.ndarray, gain: np.ndarray | None) -> Cuts:
            names = [self.clips.ids[i] for i in clips.tolist()]
            return Cuts(
                host(clips),
                host(starts.astype(np.int64)),
                bool(starts.any()),
                self.audio(clips, starts, empty) if audio else None,
                self.stored(names, empty) if soft and self.stored is not None else None,
                host(gain),
            )

        return Gathered(
            ids,
            cuts(clips, starts, draw.gain),
            None if mix is None else cuts(mix.partners, mix.starts, mix.gain),
            None if mix is None else host(mix.rows),
            None if mix is None else host(mix.share),
            host(lengths.astype(np.int64)),
            host(self.clips.has_frames[clips]),
            self.marks(clips, starts, share, mix, empty),
        )

    def _lengths(self, clips: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.clip(self.clips.samples[clips] - starts * FRAME_SAMPLES, 0, self.n_samples)

    def audio(
        self, clips: np.ndarray, starts: np.ndarray, empty: Empty = torch.empty
    ) -> Int16[Tensor, "batch samples"]:
        """Samples of the cuts of `clips` that begin at the label frames `starts`."""
        out = empty((len(clips), self.n_samples), dtype=torch.int16)
        self.clips.read(clips, starts * FRAME_SAMPLES, out.numpy())
        return out

    def marks(
        self, clips: np.ndarray, starts: np.ndarray, share: np.ndarray, mix: Mix | None, empty: Empty = torch.empty
    ) -> Marks:
        """The labels of cuts of `clips`, each with its `share`, and of what is mixed into them."""
        found = [self._marks(np.arange(len(clips)), clips, starts, share)]
        if mix is not None:
            found.append(self._marks(mix.rows, mix.partners, mix.starts, 1 - mix.share))
        spans, span_weights, places, weights = (np.concatenate(parts, axis=-1) for parts in zip(*found))
        made = (_copied(values, empty) for values in (spans, span_weights, places, weights))
        at, weight, place, each = made
        return Marks(at, weight, int(spans[2].sum()), place, each)

    def _marks(self, rows: np.ndarray, clips: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> tuple:
        source = self.clips
        counts = source.start[clips + 1] - source.start[clips]
        cut = np.repeat(np.arange(len(clips)), counts)
        event = np.repeat(source.start[clips] - (np.cumsum(counts) - counts), counts) + np.arange(len(cut))
        label, timed = source.label[event].astype(np.int64), source.has_frames[clips][cut]
        begin = np.maximum(source.begin[event] - starts[cut], 0)
        length = np.minimum(source.end[event] - starts[cut], self.n_frames) - begin
        there = ~timed | (length > 0)
        cut, label, timed, begin, length = cut[there], label[there], timed[there], begin[there], length[there]
        place = rows[cut] * self.n_classes + label
        fresh = np.ones(len(place), bool)
        fresh[1:] = place[1:] != place[:-1]  # events are sorted by class within a clip
        spans = np.stack([place[timed], begin[timed], length[timed]]).astype(np.int64)
        return spans, weight[cut[timed]], place[fresh], weight[cut[fresh]]


def _copied(values: np.ndarray, empty: Empty) -> Tensor:
    """A tensor of the values in the host's memory."""
    source = torch.from_numpy(np.ascontiguousarray(values))
    return empty(source.shape, dtype=source.dtype).copy_(source)
