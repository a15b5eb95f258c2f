"""Audio and soft labels of a whole set in the memory of a device, where they fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int16
from torch import Tensor

from framekd.config import UserError
from framekd.data.clips import ClipSet
from framekd.data.gather import Cuts
from framekd.units import FRAME_SAMPLES

AudioOn = Literal["host", "device", "auto"]
SHARE = 0.25
"""Share of the free memory that `auto` may take: the rest is for the model and a step."""
BLOCK = 64  # clips read at once


@dataclass(frozen=True)
class Resident:
    """What a device has of a whole set; None is nothing.

    Attributes:
        audio: all clips, int16 [clips, longest], zeros after their ends.
        soft: their soft labels as stored.
    """

    audio: Int16[Tensor, "clips longest"] | None = None
    soft: Tensor | None = None

    def cuts(self, cuts: Cuts, n_samples: int) -> Int16[Tensor, "cuts n_samples"]:
        """The samples of cuts."""
        assert self.audio is not None
        if not cuts.moved:
            return self.audio[cuts.clips, :n_samples]
        column = (cuts.starts * FRAME_SAMPLES)[:, None] + torch.arange(n_samples, device=self.audio.device)
        return self.audio[cuts.clips[:, None], column.clamp_(max=self.audio.shape[1] - 1)]


def choose(
    audio_on: AudioOn, clips: ClipSet, n_samples: int, soft: Any, device: torch.device, *, free: int | None = None
) -> Resident:
    """Load what `audio_on` says to `device`, and say on stderr what was chosen.

    Args:
        audio_on: "host" is nothing; "device" is audio and soft labels; "auto" is both, or the audio alone, or nothing,
            by what a quarter of the free memory holds. On a CPU, "auto" is nothing: the files are in its memory.
        n_samples: samples of a cut.
        soft: a source with `stored`, or None.
        free: free bytes of the device; asked from its driver unless given.
    Raises:
        UserError: "device", and it does not fit.
    """
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else {"auto": 0}.get(audio_on, 2**62)
    if audio_on == "host" or free == 0:
        return Resident()
    longest = max(n_samples, int(clips.samples.max(initial=0)))
    sizes = {"audio": 2 * len(clips) * longest}
    if soft is not None:
        one = soft.stored(clips.ids[:1], torch.empty)
        sizes["soft labels"] = len(clips) * one.nbytes
    limit = free if audio_on == "device" else SHARE * free
    about = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sizes.items())
    room = f"{free / 1e9:.1f} GB of {device} are free"
    while sizes and sum(sizes.values()) > limit:
        if audio_on == "device":
            raise UserError(f"audio_on: device needs {about}, but only {room}; write audio_on: auto")
        sizes.popitem()
    kept = " and ".join(sizes) or "nothing"
    print(f"audio_on: {audio_on}: {kept} of the training set in the device's memory ({about}; {room})", file=sys.stderr)
    return Resident(
        _audio(clips, longest, device) if "audio" in sizes else None,
        _soft(soft, clips.ids, device) if "soft labels" in sizes else None,
    )


def _audio(clips: ClipSet, longest: int, device: torch.device) -> Tensor:
    whole = torch.empty((len(clips), longest), dtype=torch.int16, device=device)
    for i in range(0, len(clips), BLOCK):
        block = torch.empty((min(BLOCK, len(clips) - i), longest), dtype=torch.int16)
        clips.read(np.arange(i, i + len(block)), np.zeros(len(block), np.int64), block.numpy())
        whole[i : i + len(block)] = block.to(device)
    return whole


def _soft(soft: Any, ids: Sequence[str], device: torch.device) -> Tensor:
    first = soft.stored(ids[:1], torch.empty)
    whole = torch.empty((len(ids), *first.shape[1:]), dtype=first.dtype, device=device)
    for i in range(0, len(ids), BLOCK):
        block = soft.stored(ids[i : i + BLOCK], torch.empty)
        whole[i : i + len(block)] = block.to(device)
    return whole
