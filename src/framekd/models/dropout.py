"""Dropout for fp32 on a CPU from 16 random bits an element, where torch draws a variate each, five times as slow."""

import torch
import torch.nn.functional as F
from torch import Tensor

from framekd.models.linear import fits_fp32_cpu

LEVELS = 2**16


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its elements zero and the others scaled up; draws from torch's default generator."""
    if not rate:
        return x
    if not fits_fp32_cpu(x, x):
        return F.dropout(x, rate)
    return x * (kept(x.shape, rate) * scale(rate))


def kept(shape: torch.Size, rate: float) -> Tensor:
    """Which elements stay: a boolean tensor on the CPU."""
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].view(shape) >= threshold(rate)


def threshold(rate: float) -> int:
    return round(rate * LEVELS) - LEVELS // 2


def scale(rate: float) -> float:
    """What keeps the expectation, exactly: the rate is a multiple of 1/65536."""
    return LEVELS / (LEVELS // 2 - threshold(rate))
