"""Batches of clips: waveforms and labels of equal length, on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips of equal length, padded with zeros at the end.

    Of several processes that train together, each has the ids of all clips but the tensors of its own rows only, until
    `whole` has joined them.

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

    def whole(self, join: Callable[[Tensor], Tensor]) -> Batch:
        """Join the labels of all processes' rows by `join`; the waveforms stay those of the own rows."""
        return self._map(join, self.ids, spared="waveform")

    def __getitem__(self, part: slice) -> Batch:
        """A part of the batch; tensors are views."""
        return self._map(lambda tensor: tensor[part], self.ids[part])

    def _map(self, change: Callable[[Tensor], Tensor], ids: list[str], spared: str = "") -> Batch:
        """Apply `change` to every tensor but `spared`."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(v) if isinstance(v, Tensor) and name != spared else v for name, v in given.items()
        }
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
        return b.waveform.new_zeros((len(b.waveform), *(shape or ()))) if b.frame_labels is None else b.frame_labels

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
