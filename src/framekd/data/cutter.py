"""The device's part of a batch: waveforms in -1..1, painted labels, probabilities, and the mixing of two clips.

Nothing here waits for the device: no value is read back, and no index is a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.data.batch import Batch
from framekd.data.clips import ClipSet
from framekd.data.gather import Cuts, Draw, Empty, Gathered, Gatherer, Marks, SoftSource
from framekd.data.resident import Resident
from framekd.units import CLIP_FRAMES

SCALE = 1 / 32768


class Cutter:
    """Makes batches from cuts of equal length of the clips of a set, on any device.

    Args:
        n_frames: length of a cut in label frames; shorter clips are padded with zeros at the end.
        soft: soft labels, of cuts that begin at 0.
    Attributes:
        resident: what the device has of the whole set; nothing by default.
    """

    def __init__(self, clips: ClipSet, n_frames: int = CLIP_FRAMES, *, soft: SoftSource | None = None) -> None:
        self.clips, self.n_frames = clips, n_frames
        self.soft: Any = soft if soft is None or hasattr(soft, "stored") else _Ready(soft)
        self.gatherer = Gatherer(clips, n_frames, None if self.soft is None else self.soft.stored)
        self.resident = Resident()
        self._any_frames = bool(clips.has_frames.any())

    def gather(self, draw: Draw, *, rows: slice = slice(None), pin: bool = False) -> Gathered:
        """The host's part: what has to be copied to the device, in pinned memory with `pin`."""
        empty = partial(torch.empty, pin_memory=pin)
        have = self.resident
        return self.gatherer(draw, empty=empty, rows=rows, audio=have.audio is None, soft=have.soft is None)

    def batch(self, draw: Draw, device: torch.device | str = "cpu") -> Batch:
        """A batch on `device`."""
        return self.assemble(self.gather(draw).to(torch.device(device)))

    def assemble(self, given: Gathered) -> Batch:
        """Make a batch of what is on the device."""
        wave = self._waveforms(given.mine)
        soft, known = self._soft(given.mine)
        if given.theirs is not None and given.rows is not None and given.share is not None:
            rows, share = given.rows, given.share
            self._mix_waves(wave, given.theirs, rows, share)
            other, theirs_known = self._soft(given.theirs)
            if soft is not None and known is not None and other is not None and theirs_known is not None:
                weight = share.view(-1, *[1] * (soft.ndim - 1))
                soft[rows] = soft[rows] * weight + other * (1 - weight)
                known[rows] = known[rows] * share + theirs_known * (1 - share)
        frames, whole = self.paint(given.marks, len(wave))
        return Batch(given.ids, wave, given.mine.starts, given.lengths, frames, whole, soft, given.has_frames, known)

    def _waveforms(self, cuts: Cuts) -> Float[Tensor, "cuts samples"]:
        if cuts.audio is not None:
            wave = cuts.audio.float().mul_(SCALE)
        else:
            wave = self.resident.cuts(cuts, self.gatherer.n_samples).float().mul_(SCALE)
        return wave if cuts.gain is None else wave.mul_(cuts.gain[:, None])

    def _mix_waves(self, wave: Tensor, cuts: Cuts, rows: Tensor, share: Tensor) -> None:
        """Mix cuts into rows of `wave`, in place. The means of both are removed, so the sum has zero mean too."""
        mine, theirs, weight = wave[rows], self._waveforms(cuts), share[:, None]
        mine.sub_(mine.mean(1, keepdim=True)).mul_(weight)
        theirs.sub_(theirs.mean(1, keepdim=True)).mul_(1 - weight)
        wave[rows] = mine.add_(theirs)

    def _soft(self, cuts: Cuts) -> tuple[Float[Tensor, "cuts classes *frames"] | None, Float[Tensor, " cuts"] | None]:
        """Soft labels: zeros for clips without any; and which clips have some."""
        if self.soft is None:
            return None, None
        stored = self.resident.soft[cuts.clips] if self.resident.soft is not None else cuts.soft
        values = self.soft.probabilities(stored)
        absent = (values.flatten(2)[..., 0] if values.ndim > 2 else values).isnan().all(1)
        values.masked_fill_(absent.view(-1, *[1] * (values.ndim - 1)), 0.0)
        return values, (~absent).float()

    def paint(
        self, marks: Marks, size: int
    ) -> tuple[Float[Tensor, "batch classes frames"] | None, Float[Tensor, "batch classes"]]:
        """Frame labels (None if no clip of the set has any) and clip labels of `size` rows."""
        shape, device = (size, self.gatherer.n_classes, self.n_frames), marks.places.device
        whole = torch.zeros(shape[:2], device=device)
        whole.view(-1).index_add_(0, marks.places, marks.weights)
        if not self._any_frames:
            return None, whole
        frames = torch.zeros(shape, device=device)
        place, begin, length = marks.spans
        first = place * self.n_frames + begin - (length.cumsum(0) - length)
        spread = partial(torch.repeat_interleave, repeats=length, output_size=marks.frames)
        index = spread(first) + torch.arange(marks.frames, device=device)
        # Spans of a class do not overlap (see clip_set), so an index occurs at most twice, and the sum is exact.
        frames.view(-1).index_add_(0, index, spread(marks.span_weights))
        return frames, whole


class _Ready:
    """Soft labels of a source that gives probabilities only."""

    def __init__(self, source: SoftSource) -> None:
        self._source = source

    def stored(self, ids: Sequence[str], empty: Empty) -> Tensor:
        values = self._source.rows(ids)
        values = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
        return empty(values.shape, dtype=torch.float32).copy_(values)

    @staticmethod
    def probabilities(stored: Tensor) -> Tensor:
        return stored
