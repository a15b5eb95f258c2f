"""ASiT (Ahmed et al. 2024): ViT-B on 16 × 16 patches of 128 mels in time-major order, with a class token."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models.encoder import NORM_EPS, Encoder, PatchEmbed, ReferenceLayout, blocks, tokens
from framekd.models.mel import KaldiMel

PATCH = 16
GRIDS = {"frequency-first": (8, 37), "time-first": (37, 8)}


class Asit(Encoder):
    """The output is the class token and then the patches, frequency varying fastest: 497 tokens for 10 s.

    Extra size `position_grid`: how the table of 296 positions is read before it is resized to (time, 8).
    "frequency-first" (8 × 37) is how the released weights were trained, although the patches are time-major.
    "time-first" (37 × 8) is for a table in the order of the patches.
    """

    REFERENCE = ReferenceLayout(prefixes=("model.asit.", "model."), upstream=("", "module.backbone.", "backbone."))

    def __init__(self, *, width: int, depth: int, heads: int, mlp: int, position_grid: str, **_: Any) -> None:
        super().__init__()
        if position_grid not in GRIDS:
            raise UserError(f"ASiT's position_grid must be one of {', '.join(GRIDS)}, not {position_grid!r}.")
        self.front_end = KaldiMel(window="hann", scale=1.0, centre_clip=True, mean=-4.2677393, std=4.5689974)
        self.embed_dim = width
        self.grid = GRIDS[position_grid]
        self.cls_token = tokens(1, width)
        self.pos_embed = tokens(1 + self.grid[0] * self.grid[1], width)
        self.patch_embed = PatchEmbed(width)
        self.blocks = blocks(width, depth, heads, mlp)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def top(self) -> list[nn.Module]:
        return [self.norm]

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        frames = mel.shape[-1]
        if frames < PATCH:
            raise UserError(f"ASiT needs at least {PATCH} spectrogram frames (0.18 s), not {frames}; pad the audio.")
        x = self.patch_embed(mel.transpose(2, 3))
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.positions(frames, mel.shape[2])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def positions(self, frames: int, bins: int) -> Float[Tensor, "1 length width"]:
        """Read the positions of a spectrogram; the table is resized bicubically unless its size fits."""
        if frames * bins == self.grid[0] * self.grid[1] * PATCH * PATCH:
            return self.pos_embed
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        table = F.interpolate(table, size=(frames // PATCH, bins // PATCH), mode="bicubic", align_corners=False)
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)), dim=1)
