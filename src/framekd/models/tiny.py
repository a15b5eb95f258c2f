"""A tiny student: the example of how to add an architecture, and fast enough for tests."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from framekd.models.encoder import NORM_EPS, Encoder, blocks
from framekd.models.mel import DecibelMel

STEP = 4  # spectrogram frames of a token: 40 ms


class Tiny(Encoder):
    """ATST-F's tokens with positions from a depthwise convolution: any duration, 0.1 million parameters."""

    def __init__(self, *, width: int, depth: int, heads: int, mlp: int, kernel: int, **_: Any) -> None:
        super().__init__()
        self.front_end = DecibelMel()
        self.embed_dim = width
        self.embed = nn.Conv2d(1, width, kernel_size=(64, STEP), stride=STEP)
        self.place = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.blocks = blocks(width, depth, heads, mlp)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def top(self) -> list[nn.Module]:
        return [self.norm]

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        x = self.embed(mel).squeeze(2)
        x = (x + self.place(x)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
