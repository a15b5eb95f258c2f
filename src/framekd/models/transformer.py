"""What the ViT-type encoders share: pre-norm blocks on fused attention, patches, and their initialisation."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.models.linear import Linear, fits_fp32_cpu, linear

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

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
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
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
    """Non-overlapping 16 × 16 patches as a convolution: [batch, 1, rows, columns] → [batch, width, rows', columns']."""

    def __init__(self, width: int, *, channels: int = 1, size: tuple[int, int] = (16, 16)) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return patch_conv(x, self.proj)


def patch_conv(
    x: Float[Tensor, "batch channels rows columns"], conv: nn.Conv2d
) -> Float[Tensor, "batch width fewer_rows fewer_columns"]:
    """A convolution whose stride is its kernel: on a CPU a matrix product over patches, with its quicker gradient."""
    if not fits_fp32_cpu(x, conv.weight):
        return conv(x)
    high, wide = conv.kernel_size
    rows, columns = x.shape[2] // high, x.shape[3] // wide
    x = x[:, :, : rows * high, : columns * wide].unflatten(3, (columns, wide)).unflatten(2, (rows, high))
    patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return linear(patches, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def blocks(width: int, depth: int, heads: int, hidden: int, *, qkv_bias: bool = True) -> nn.ModuleList:
    """`depth` pre-norm blocks."""
    return nn.ModuleList(Block(width, heads, hidden, qkv_bias=qkv_bias) for _ in range(depth))


def tokens(count: int, width: int) -> nn.Parameter:
    """A learned table [1, count, width] (tokens, positions), small at the start."""
    return nn.Parameter(torch.zeros(1, count, width))


@torch.no_grad()
def init_vit(module: nn.Module, generator: torch.Generator | None) -> None:
    """Initialise a ViT-type encoder: Xavier linear layers, zero biases, unit norms, tables N(0, 0.02).

    Xavier rather than a fixed 0.02, so that narrow models start at a sensible scale too.
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
