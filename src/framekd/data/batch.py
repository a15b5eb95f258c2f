"""A batch of clips: waveforms and whatever labels they have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips of equal length, padded on the right with zeros.

    Attributes:
        ids: clip ids.
        waveform: 16 kHz, -1 … 1.
        starts: first label frame of each cut within its clip (0 unless the clip is longer than the cut).
        lengths: samples before the padding.
        frame_labels: 0 … 1 (fractions after mixing); zeros where `has_frame_labels` is false; None if no clip has any.
        clip_labels: 0 … 1; for clips with frame labels, the classes active within the cut.
        soft_labels: the ensemble's probabilities, of frames or of clips; zeros for clips that it lacks, NaN for classes
            that it lacks; None unless distilling.
        has_frame_labels: which clips have frame labels.
        soft_share: the part of each clip that has soft labels: 0 or 1, and fractions after mixing; None unless
            distilling.
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
        """The batch on `device`."""
        device = torch.device(device)
        if self.waveform.device == device:
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), self.ids)

    def __getitem__(self, part: slice) -> Batch:
        """A part of the batch, without copying."""
        return self._map(lambda tensor: tensor[part], self.ids[part])

    def _map(self, change: Callable[[Tensor], Tensor], ids: list[str]) -> Batch:
        """The batch with every tensor changed."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in given.items()}
        return Batch(**{**changed, "ids": ids})


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of several (weak and strong clips in one step); labels that some lack are zeros there.

    Soft labels must be in all or in none.
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
