"""A linear layer that takes oneDNN's matrix product on a CPU in fp32, where it is faster than the BLAS torch ships.

On processors that MKL does not favour, oneDNN's kernels (wide vectors whatever the maker) take a tenth to a third less
time.  The parameters, their names and the results up to rounding are nn.Linear's; on a GPU, under autocast, in another
precision or in a compiled graph it is nn.Linear.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

USE_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return linear(input, self.weight, self.bias)


def linear(
    input: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Tensor | None
) -> Float[Tensor, "*batch outputs"]:
    """F.linear, by oneDNN where that is the faster."""
    if not (USE_ONEDNN and fits_fp32_cpu(input, weight)):
        return F.linear(input, weight, bias)
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return OneDnnLinear.apply(input, weight, bias)
    return product(input, weight, bias)


def fits_fp32_cpu(input: Tensor, weight: Tensor) -> bool:
    """Whether a computation written for fp32 on a CPU, outside autocast and compiled graphs, may be taken."""
    return (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input @ weight.T + bias, as one oneDNN primitive."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class OneDnnLinear(torch.autograd.Function):
    """The product with its gradients; that of the weights stays with BLAS, which is as fast for its shape."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        return product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_input = product(rows, weight.t(), None).view(input.shape) if ctx.needs_input_grad[0] else None
        to_weight = rows.t() @ input.reshape(-1, input.shape[-1]) if ctx.needs_input_grad[1] else None
        to_bias = rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return to_input, to_weight, to_bias
