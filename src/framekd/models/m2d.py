"""M2D (Masked Modeling Duo, the audio encoder of M2D-CLAP; Niizumi et al. 2024): ViT-B on 16 × 16 patches."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.models.encoder import NORM_EPS, Encoder, PatchEmbed, ReferenceLayout, blocks, tokens
from framekd.models.mel import M2D_NORM_STATS, SlaneyMel

PATCH = 16
ROWS = 5  # frequency patches of 80 mels
COLUMNS = 62  # time patches of a chunk
CHUNK_FRAMES = 1001


class M2d(Encoder):
    """Frequency-major patches and a class token; the five embeddings of a time step are concatenated.

    `norm_stats` (mean and standard deviation of the log-mel) is stored with the weights and never trained. The front
    end does not read it: the authors' code uses -7.1 and 4.2, whatever a file has (see :meth:`other_statistics`).
    """

    REFERENCE = ReferenceLayout(
        prefixes=("model.m2d.backbone.", "model.backbone."),
        upstream=("", "module.ar.runtime.backbone."),
        constants=tuple(
            f"{prefix}to_spec.{name}"
            for prefix in ("model.m2d.", "model.")
            for name in ("mel_basis", "stft.wsin", "stft.wcos", "stft.window_mask")
        ),
        dropped=("head.", "audio_proj.", "text_proj.", "text_encoder.", "decoder", "mask_token", "predictor."),
    )

    def __init__(self, *, width: int, depth: int, heads: int, mlp: int, **_: Any) -> None:
        super().__init__()
        self.front_end = SlaneyMel()
        self.embed_dim = ROWS * width
        self.cls_token = tokens(1, width)
        self.pos_embed = tokens(1 + ROWS * COLUMNS, width)
        self.norm_stats = nn.Parameter(torch.tensor(M2D_NORM_STATS), requires_grad=False)
        self.patch_embed = PatchEmbed(width)
        self.blocks = blocks(width, depth, heads, mlp)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def top(self) -> list[nn.Module]:
        return [self.norm]

    def other_statistics(self) -> list[float] | None:
        """Mean and standard deviation of the loaded weights, if they are not the authors' -7.1 and 4.2."""
        stats = self.norm_stats.detach().float().cpu()
        return None if torch.allclose(stats, torch.tensor(M2D_NORM_STATS), rtol=0, atol=1e-4) else stats.tolist()

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Encode chunks of 1001 frames separately; the last chunk is padded with zeros to whole patches."""
        mel = F.pad(mel, (0, -(mel.shape[-1] % CHUNK_FRAMES) % PATCH))
        parts = [self.chunk(part) for part in mel.split(CHUNK_FRAMES, dim=-1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def chunk(self, mel: Float[Tensor, "batch 1 bins frames"]) -> Float[Tensor, "batch length width"]:
        """Encode one chunk."""
        x = self.patch_embed(mel)
        batch, width, rows, columns = x.shape
        grid = self.pos_embed[:, 1:].view(1, ROWS, COLUMNS, width)[:, :, :columns]
        x = x.flatten(2).transpose(1, 2) + grid.reshape(1, rows * columns, width)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = torch.cat((first, x), dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, 1:]).view(batch, rows, columns, width)
        return x.transpose(1, 2).reshape(batch, columns, rows * width)
