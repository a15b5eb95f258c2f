"""The contract of an architecture: what `Encoder` asks of a further one, and how published files name its tensors."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from framekd.models.mel import FrontEnd
from framekd.models.transformer import init_vit

COMMON_SIZES = ("width", "depth", "heads", "mlp", "rnn_hidden")


@dataclass(frozen=True)
class ReferenceLayout:
    """How published weight files name an encoder's tensors.

    prefixes: what stands before a name in the authors' files, the canonical one first.  upstream: the same of the
    original models' files.  renames: (theirs, ours) beginnings of a name behind the prefix, the first that fits.
    constants: full names that a file may carry or lack, because the front end computes them.  dropped: beginnings
    of names in upstream files that belong to parts this encoder does not have (their classifiers).
    """

    prefixes: tuple[str, ...]
    upstream: tuple[str, ...] = ("",)
    renames: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ("head.", "head_dist.", "predictor.")


class Encoder(nn.Module):
    """The contract of an architecture: one file, one registry line, and these names.

    - `SIZES`: its default sizes, a flat dict with at least `COMMON_SIZES` (mlp = hidden units of a block's MLP);
    - `__init__(**sizes)` sets `front_end` (a `FrontEnd`), `blocks` (an nn.ModuleList, bottom first) and
      `embed_dim` (channels of the sequence it gives); no network, no files;
    - `forward(mel, generator=None)`: [batch, 1, bins, frames] → [batch, S, embed_dim]; draws random numbers only
      in training mode with a generator: host-side ones from it, device-side ones (dropout) from torch's default
      generators, which `FrameModel.encode` has seeded from it for the duration of the call;
    - `top()`: the modules that share the learning rate of the last block (the final norm);
    - `REFERENCE`: names in published files, or None; `init_weights(generator)`: a random start.
    """

    SIZES: ClassVar[dict[str, Any]]
    REFERENCE: ClassVar[ReferenceLayout | None] = None
    random: bool = False  # draws random numbers in training mode
    front_end: FrontEnd
    blocks: nn.ModuleList
    embed_dim: int

    def frontend(self, waveform: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return self.front_end(waveform, generator=generator)

    def top(self) -> list[nn.Module]:
        return []

    def init_weights(self, generator: torch.Generator | None) -> None:
        init_vit(self, generator)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make upstream weights (our names) fit this encoder; the default changes nothing."""
        return state
