"""Attention with a gated additive bias, for training on a CPU, where torch's fused kernel gives the bias no gradient.

torch would fall back on whole [batch, heads, tokens, tokens] products, and pass over them some twenty times.  Here it
goes head by head: what is being worked on stays in the cache, and queries, keys and values are read where they lie.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from framekd.models.dropout import kept, scale
from framekd.models.linear import fits_fp32_cpu


def biased_attention(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch heads tokens dim"],
    v: Float[Tensor, "batch heads tokens dim"],
    gate: Float[Tensor, "batch heads tokens 1"],
    bias: Float[Tensor, "1 heads tokens tokens"],
    *,
    dropout: float,
) -> Float[Tensor, "batch heads tokens dim"]:
    """dropout(softmax(q kᵀ / √dim + gate bias)) v.  The draws are those of torch's default generator."""
    if torch.is_grad_enabled() and bias.requires_grad and fits_fp32_cpu(q, bias):
        return BiasedAttention.apply(q, k, v, gate, bias, dropout)
    mask = (gate * bias).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, bias: Tensor, dropout: float) -> Tensor:
        batch, heads, tokens, dim = q.shape
        mixed = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        weights = q.new_empty(batch, heads, tokens, tokens)
        dropped = torch.empty_like(weights) if dropout else weights
        logits = q.new_empty(tokens, tokens)
        for at in places(batch, heads):
            torch.mul(bias[0, at[1]], gate[at], out=logits)
            logits.addmm_(q[at], k[at].T, alpha=dim**-0.5)
            torch.softmax(logits, dim=-1, out=weights[at])
            if dropout:
                torch.mul(weights[at], kept(logits.shape, dropout), out=dropped[at]).mul_(scale(dropout))
            torch.mm(dropped[at], v[at], out=mixed[at])
        ctx.save_for_backward(q, k, v, gate, bias, mixed, weights, dropped)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The softmax's own term, the sum over keys of weight × derivative, is the product of output and gradient."""
        q, k, v, gate, bias, mixed, weights, dropped = ctx.saved_tensors
        batch, heads, tokens, dim = q.shape
        to_q, to_k, to_v = (q.new_empty(batch, tokens, heads, dim).transpose(1, 2) for _ in range(3))
        to_gate, to_bias = torch.empty_like(gate), torch.zeros_like(bias)
        own = (grad * mixed).sum(dim=-1, keepdim=True).neg_()
        slope, scratch = q.new_empty(tokens, tokens), q.new_empty(tokens, tokens)
        for at in places(batch, heads):
            torch.mm(dropped[at].T, grad[at], out=to_v[at])
            torch.mm(grad[at], v[at].T, out=slope)
            slope.mul_(dropped[at]).addcmul_(weights[at], own[at])
            torch.mul(slope, bias[0, at[1]], out=scratch)
            torch.sum(scratch, dim=-1, keepdim=True, out=to_gate[at])
            to_bias[0, at[1]].addcmul_(slope, gate[at])
            torch.mm(slope, k[at], out=to_q[at]).mul_(dim**-0.5)
            torch.mm(slope.T, q[at], out=to_k[at]).mul_(dim**-0.5)
        return to_q, to_k, to_v, to_gate, to_bias, None


def places(batch: int, heads: int) -> list[tuple[int, int]]:
    return [(i, head) for i in range(batch) for head in range(heads)]
