"""BEATs (Chen et al. 2023, iteration 3): 16 × 16 patches, convolutional and gated relative positions, DeepNorm."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framekd.config import UserError
from framekd.models.encoder import Encoder, ReferenceLayout
from framekd.models.mel import KaldiMel

PATCH = 16
BUCKETS = 320
MAX_DISTANCE = 800


class PositionConv(nn.Module):
    """Grouped convolution over the tokens with weight normalisation per tap, then GELU; `kernel` is even."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.gain = nn.Parameter(torch.ones(1, 1, kernel))
        self.direction = nn.Parameter(torch.zeros(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        weight = self.direction * (self.gain / self.direction.norm(dim=(0, 1), keepdim=True))
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]].transpose(1, 2))


class GatedAttention(nn.Module):
    """Self-attention whose relative bias is scaled by a gate computed from each query.

    The gated bias is a mask [batch, heads, tokens, tokens]: 1.5 GB per layer for 256 clips in bf16. With `recompute` it
    is not kept for the backward pass but computed again there, with the same dropout; None is so on a GPU.
    """

    recompute: bool | None = None

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "1 heads tokens tokens"],
        *,
        dropout: float,
    ) -> Float[Tensor, "batch tokens width"]:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        recompute = x.is_cuda if self.recompute is None else self.recompute
        if recompute and torch.is_grad_enabled():
            mixed = checkpoint(self.attend, q, k, v, bias, dropout, use_reentrant=False)
        else:
            mixed = self.attend(q, k, v, bias, dropout)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def attend(
        self,
        q: Float[Tensor, "batch heads tokens dim"],
        k: Float[Tensor, "batch heads tokens dim"],
        v: Float[Tensor, "batch heads tokens dim"],
        bias: Float[Tensor, "1 heads tokens tokens"],
        dropout: float,
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Attention with the gated bias."""
        mask = (self.gate(q) * bias).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    def gate(self, q: Float[Tensor, "batch heads tokens dim"]) -> Float[Tensor, "batch heads tokens 1"]:
        """a (b grep_a - 1) + 2, where a and b are the sigmoids of sums of four linear outputs of the query."""
        a, b = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().split(1, dim=-1)
        return a * (b * self.grep_a - 1.0) + 2.0


class PostNormBlock(nn.Module):
    """Post-norm block with DeepNorm's residual weight a: LN(a x + f(x))."""

    def __init__(self, width: int, heads: int, hidden: int, *, residual: float) -> None:
        super().__init__()
        self.residual = residual
        self.self_attn = GatedAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "1 heads tokens tokens"],
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> Float[Tensor, "batch tokens width"]:
        mixed = F.dropout(self.self_attn(x, bias, dropout=attention_dropout), dropout)
        x = self.self_attn_layer_norm(self.residual * x + mixed)
        hidden = F.dropout(self.fc2(F.gelu(self.fc1(x))), dropout)
        return self.final_layer_norm(self.residual * x + hidden)


class Beats(Encoder):
    """Tokens are time-major patches (62 × 8 for 10 s); relative positions are distances in the flattened sequence.

    Extra sizes: `patch_dim` (channels of the patch convolution), `pos_kernel`, `pos_groups`, and rates that apply in
    training with a generator: `dropout` (input and residual branches), `attention_dropout`, `layerdrop`.
    """

    REFERENCE = ReferenceLayout(
        prefixes=("model.beats.", "model.model."),
        renames=(
            ("encoder.pos_conv.0.parametrizations.weight.original0", "pos_conv.gain"),
            ("encoder.pos_conv.0.parametrizations.weight.original1", "pos_conv.direction"),
            ("encoder.pos_conv.0.weight_g", "pos_conv.gain"),
            ("encoder.pos_conv.0.weight_v", "pos_conv.direction"),
            ("encoder.pos_conv.0.bias", "pos_conv.bias"),
            ("encoder.layers.0.self_attn.relative_attention_bias.", "relative_bias."),
            ("encoder.layers.", "blocks."),
            ("encoder.layer_norm.", "position_norm."),
        ),
    )
    random = True

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        patch_dim: int,
        pos_kernel: int,
        pos_groups: int,
        dropout: float,
        attention_dropout: float,
        layerdrop: float,
        **_: Any,
    ) -> None:
        super().__init__()
        self.dropout, self.attention_dropout, self.layerdrop = dropout, attention_dropout, layerdrop
        if width % pos_groups or pos_kernel % 2:
            raise UserError(f"BEATs: pos_groups ({pos_groups}) must divide width ({width}), pos_kernel must be even.")
        self.front_end = KaldiMel(window="povey", scale=2.0**15, centre_clip=False, mean=15.41663, std=6.55582)
        self.embed_dim = width
        self.patch_embedding = nn.Conv2d(1, patch_dim, kernel_size=PATCH, stride=PATCH, bias=False)
        self.layer_norm = nn.LayerNorm(patch_dim)
        self.post_extract_proj = nn.Linear(patch_dim, width)
        self.pos_conv = PositionConv(width, pos_kernel, pos_groups)
        self.position_norm = nn.LayerNorm(width)
        self.relative_bias = nn.Embedding(BUCKETS, heads)
        residual = (2.0 * depth) ** 0.25
        self.blocks = nn.ModuleList(PostNormBlock(width, heads, mlp, residual=residual) for _ in range(depth))

    def forward(
        self, mel: Float[Tensor, "batch 1 bins frames"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        if mel.shape[-1] < PATCH:
            raise UserError(f"BEATs needs at least {PATCH} spectrogram frames (0.18 s), not {mel.shape[-1]}; pad it.")
        drops = self.training and generator is not None
        rate, attention_rate = (self.dropout, self.attention_dropout) if drops else (0.0, 0.0)
        x = self.patch_embedding(mel.transpose(2, 3)).flatten(2).transpose(1, 2)
        x = F.dropout(self.post_extract_proj(self.layer_norm(x)), rate)
        x = F.dropout(self.position_norm(x + self.pos_conv(x)), rate)
        bias = self.bias(x.shape[1])
        for block, keep in zip(self.blocks, self.kept_layers(generator if drops else None)):
            if keep:
                x = block(x, bias, rate, attention_rate)
        return x

    def kept_layers(self, generator: torch.Generator | None) -> list[bool]:
        """Draw which layers this batch passes through: each with probability 1 - layerdrop, all without a generator."""
        if generator is None:
            return [True] * len(self.blocks)
        draws = torch.rand(len(self.blocks), generator=generator, device=generator.device)
        return (draws > self.layerdrop).tolist()

    def bias(self, length: int) -> Float[Tensor, "1 heads length length"]:
        """Look up the bias of every (query, key) pair, which depends on the distance key - query only."""
        buckets = relative_buckets(length, self.relative_bias.weight.device)
        diagonals = self.relative_bias(buckets).T  # [heads, 2 length - 1], distance ascending
        rows = diagonals.unfold(1, length, 1)  # row r: distances r - (length - 1) …; the query is length - 1 - r
        return rows.flip(1).unsqueeze(0)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None) -> None:
        """Draw all weights anew as DeepNorm does: Xavier, with gain (8 depth)^-1/4 for values, outputs and the MLP."""
        small = (8.0 * len(self.blocks)) ** -0.25
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear):
                damped = name.endswith(("v_proj", "out_proj", "fc1", "fc2"))
                nn.init.xavier_normal_(part.weight, gain=small if damped else 1.0, generator=generator)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, GatedAttention):
                nn.init.ones_(part.grep_a)
        nn.init.kaiming_uniform_(self.patch_embedding.weight, a=math.sqrt(5), generator=generator)
        nn.init.xavier_normal_(self.relative_bias.weight, generator=generator)
        conv = self.pos_conv
        nn.init.normal_(conv.direction, std=math.sqrt(4.0 / (conv.kernel * self.embed_dim)), generator=generator)
        conv.gain.copy_(conv.direction.norm(dim=(0, 1), keepdim=True))
        nn.init.zeros_(conv.bias)


@functools.lru_cache(maxsize=64)
def relative_buckets(length: int, device: torch.device) -> Tensor:
    """Buckets of the distances key - query = -(length - 1) … length - 1: exact up to 79, then logarithmic to 800."""
    with torch.inference_mode(False):  # autograd cannot use a cached inference tensor
        distance = torch.arange(1 - length, length)
        half, exact = BUCKETS // 2, BUCKETS // 4
        size = distance.abs()
        steps = torch.log(size.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
        far = (exact + steps.long()).clamp(max=half - 1)
        return (torch.where(size < exact, size, far) + (distance > 0).long() * half).to(device)
