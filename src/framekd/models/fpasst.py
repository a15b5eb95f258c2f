"""fPaSST (frame-wise PaSST, Schmid et al. 2024): a small convolutional stem, 40-ms tokens, DeiT's blocks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models.encoder import NORM_EPS, Encoder, ReferenceLayout, blocks, tokens
from framekd.models.mel import EmphasisMel

BINS = 128
POSITIONS = 250


class TimePatch(nn.Module):
    """Projection of two 40-ms columns to a token; a module of its own because published files name it so."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=(BINS, 2))

    def forward(self, x: Float[Tensor, "batch channels bins time"]) -> Float[Tensor, "batch time width"]:
        """Token t sees the columns t and t + 1; the column after the last one is zero."""
        return self.proj(F.pad(x, (0, 1))).squeeze(2).transpose(1, 2)


class FPasst(Encoder):
    """Three convolutions to 40 ms and 32 bands, reshaped to 128 rows; one token per column, and two extra tokens.

    Extra size `stem`: channels of the convolutions; the last is a multiple of 4.
    """

    REFERENCE = ReferenceLayout(prefixes=("model.fpasst.", "model."))
    random = True

    def __init__(self, *, width: int, depth: int, heads: int, mlp: int, stem: Sequence[int], **_: Any) -> None:
        super().__init__()
        if len(stem) != 3 or stem[2] % 4:
            raise UserError(f"fPaSST's stem must be three channel counts, the last a multiple of 4, not {list(stem)}.")
        self.front_end = EmphasisMel()
        self.embed_dim = width
        self.conv_in_1 = nn.Conv2d(1, stem[0], 3, stride=2, padding=1)
        self.conv_in_2 = nn.Conv2d(stem[0], stem[1], 3, stride=1, padding=1)
        self.conv_in_3 = nn.Conv2d(stem[1], stem[2], 3, stride=2, padding=1)
        self.patch_embed = TimePatch(stem[2] // 4, width)
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, POSITIONS))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.cls_token, self.dist_token = tokens(1, width), tokens(1, width)
        self.new_pos_embed = tokens(2, width)
        self.blocks = blocks(width, depth, heads, mlp)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def top(self) -> list[nn.Module]:
        return [self.norm]

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        x = F.gelu(self.conv_in_1(mel))
        x = F.gelu(self.conv_in_2(x))
        x = F.gelu(self.conv_in_3(x))
        batch, _, _, length = x.shape
        if length > POSITIONS:
            raise UserError(
                f"fPaSST takes up to 10 s (1000 spectrogram frames), not {mel.shape[-1]} frames; "
                "cut longer audio into windows of 10 s."
            )
        x = self.patch_embed(x.reshape(batch, -1, BINS, length))
        x = x + self.positions(length, generator)
        extra = torch.cat((self.cls_token, self.dist_token), dim=1) + self.new_pos_embed
        x = torch.cat((extra.expand(batch, -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 2:])

    def positions(self, length: int, generator: torch.Generator | None) -> Float[Tensor, "1 length width"]:
        """Read the first `length` positions; in training, a random window of the table."""
        start = 0
        if self.training and generator is not None and length < POSITIONS:
            draw = torch.randint(1 + POSITIONS - length, (1,), generator=generator, device=generator.device)
            start = int(draw)
        table = self.time_new_pos_embed[:, :, 0, start : start + length] + self.freq_new_pos_embed[:, :, 0]
        return table.transpose(1, 2)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert DeiT-B distilled 384 (ImageNet, RGB, 24 × 24 patches), the authors' start of this model.

        The patch filters' channels are repeated to our number, scaled to keep their sum, and reshaped to 128 × 2. The
        position grid is resized bicubically to 1 × 250; its mean over time becomes the frequency position. The stem
        keeps its values.
        """
        if "pos_embed" not in state:
            return state
        state = dict(state)
        positions = state.pop("pos_embed")
        width = positions.shape[2]
        side = round((positions.shape[1] - 2) ** 0.5)
        grid = positions[:, 2:].reshape(1, side, side, width).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(1, POSITIONS), mode="bicubic", align_corners=False)
        state["new_pos_embed"] = positions[:, :2]
        state["freq_new_pos_embed"] = grid.mean(dim=3, keepdim=True)
        state["time_new_pos_embed"] = grid.mean(dim=2, keepdim=True)
        filters = state["patch_embed.proj.weight"]
        channels = self.patch_embed.proj.in_channels
        repeated = filters.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3.0 / channels)
        state["patch_embed.proj.weight"] = repeated.reshape(filters.shape[0], channels, BINS, 2)
        for name, value in self.state_dict().items():
            if name.startswith("conv_in_"):
                state.setdefault(name, value)
        return state
