"""ATST-F (ATST-Frame, Li et al. 2024): 40-ms patches of the whole spectrum, learned positions for 10 s."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models.encoder import NORM_EPS, Encoder, ReferenceLayout, blocks, tokens
from framekd.models.mel import DecibelMel

PATCH_FRAMES = 4
POSITIONS = 250


class Atst(Encoder):
    """Tokens of 64 mels × 4 frames, positions 1…250, no class token; queries, keys and values have no bias."""

    REFERENCE = ReferenceLayout(
        prefixes=("model.atst.",),
        upstream=("", "model.teacher.encoder.", "encoder.encoder.frame_encoder.", "encoder.encoder."),
        renames=(("norm_frame.", "norm."), ("patch_embed.patch_embed.", "patch_embed.")),
        constants=("model.atst_mel.mel_transform.spectrogram.window", "model.atst_mel.mel_transform.mel_scale.fb"),
        dropped=("cls_token", "head."),
    )

    def __init__(self, *, width: int, depth: int, heads: int, mlp: int, **_: Any) -> None:
        super().__init__()
        self.front_end = DecibelMel()
        self.embed_dim = width
        self.mask_embed = tokens(1, width)  # unused here; published files have it
        self.pos_embed = tokens(POSITIONS + 1, width)  # entry 0 is unused
        self.patch_embed = nn.Linear(PATCH_FRAMES * 64, width)
        self.blocks = blocks(width, depth, heads, mlp, qkv_bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def top(self) -> list[nn.Module]:
        return [self.norm]

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        batch, _, bins, frames = mel.shape
        length = frames // PATCH_FRAMES
        if not 1 <= length <= POSITIONS:
            raise UserError(
                f"ATST-F takes 40 ms to 10 s (4 to 1003 spectrogram frames), not {frames} frames; "
                "cut longer audio into windows of 10 s."
            )
        patches = mel[..., : length * PATCH_FRAMES].reshape(batch, bins, length, PATCH_FRAMES)
        x = self.patch_embed(patches.transpose(1, 2).reshape(batch, length, bins * PATCH_FRAMES))
        x = x + self.pos_embed[:, 1 : length + 1]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
