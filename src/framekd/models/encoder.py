"""The contract of an architecture, and the transformer layers that the ViT-type encoders share."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.models.mel import FrontEnd

NORM_EPS = 1e-6


@dataclass(frozen=True)
class ReferenceLayout:
    """How published weight files name the tensors of an encoder.

    Attributes:
        prefixes: prefixes of the names in the authors' files, the canonical one first.
        upstream: prefixes of the names in the files of the original models.
        renames: (their prefix, our prefix) behind one of those prefixes; the first that matches applies.
        constants: full names that may be in a file and are ignored: the front end computes them.
        dropped: prefixes in upstream files of parts that this encoder does not have, such as classifiers.
    """

    prefixes: tuple[str, ...]
    upstream: tuple[str, ...] = ("",)
    renames: tuple[tuple[str, str], ...] = ()
    constants: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ("head.", "head_dist.", "predictor.")


class Encoder(nn.Module):
    """Base class of the architectures, whose sizes are in :mod:`framekd.config.sizes`. A subclass provides:

    - `__init__(**sizes)`, which sets `front_end`, `blocks` (first block first) and `embed_dim` (channels of the
      output);
    - `forward(mel, generator=None)`: [batch, 1, bins, frames] → [batch, length, embed_dim]. It draws random numbers
      only in training mode with a generator: on the host from that generator, on the device (dropout) from torch's
      default generators, which `FrameModel.encode` seeds from it;
    - `random = True` if it draws random numbers in training mode;
    - `REFERENCE`: names in published files, or None.
    """

    REFERENCE: ClassVar[ReferenceLayout | None] = None
    random: bool = False
    front_end: FrontEnd
    blocks: nn.ModuleList
    embed_dim: int

    def frontend(
        self, waveform: Float[Tensor, "batch samples"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 1 bins frames"]:
        """Compute the normalised log-mel spectrogram."""
        return self.front_end(waveform, generator=generator)

    def top(self) -> list[nn.Module]:
        """Modules that share the learning rate of the last block: the final norm."""
        return []

    def init_weights(self, generator: torch.Generator | None) -> None:
        """Draw all weights anew."""
        init_vit(self, generator)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert upstream weights (under our names) to this encoder's shapes; by default unchanged."""
        return state


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, hidden: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Projection of non-overlapping 16 × 16 patches; a module of its own because published files name it so."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=16, stride=16)

    def forward(
        self, x: Float[Tensor, "batch 1 rows columns"]
    ) -> Float[Tensor, "batch width patch_rows patch_columns"]:
        return self.proj(x)


def blocks(width: int, depth: int, heads: int, hidden: int, *, qkv_bias: bool = True) -> nn.ModuleList:
    """Make `depth` pre-norm blocks."""
    return nn.ModuleList(Block(width, heads, hidden, qkv_bias=qkv_bias) for _ in range(depth))


def tokens(count: int, width: int) -> nn.Parameter:
    """Make a learned table [1, count, width] of tokens or positions; `init_vit` draws its values."""
    return nn.Parameter(torch.zeros(1, count, width))


@torch.no_grad()
def init_vit(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialise a ViT-type encoder: Xavier linear layers, zero biases, norms of one, tables N(0, 0.02).

    Xavier instead of N(0, 0.02) gives narrow models a sensible scale too.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, nn.Linear | nn.Conv2d | nn.LayerNorm) and part.bias is not None:
            nn.init.zeros_(part.bias)
        for table in part._parameters.values():
            if table is not None and table.requires_grad and not isinstance(part, nn.Linear | nn.Conv2d | nn.LayerNorm):
                nn.init.normal_(table, std=0.02, generator=generator)
