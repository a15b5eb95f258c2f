"""A grouped convolution with many taps over a sequence: on a CPU in fp32 through the frequency domain, for speed.

The sequence is cut into overlapping segments of twice the kernel (overlap-save).  Fourier transforms so short are
matrix products, which put frequencies first without a copy; between them each frequency is a small product of channels.
"""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from framekd.models.linear import fits_fp32_cpu


def same_conv(
    x: Float[Tensor, "batch time channels"],
    weight: Float[Tensor, "channels inputs taps"],
    bias: Float[Tensor, " channels"],
    *,
    groups: int,
) -> Float[Tensor, "batch time channels"]:
    """Output t sees inputs t - taps/2 … t + taps/2 - 1, zeros outside; the number of taps is even."""
    taps = weight.shape[2]
    if fits_fp32_cpu(x, weight):
        return spectral_conv(x, weight, groups) + bias
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=taps // 2, groups=groups)
    return y[..., : x.shape[1]].transpose(1, 2)


def spectral_conv(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The convolution without its bias.  re and im are the parts of the spectrum of the taps, conjugated."""
    batch, time, channels = x.shape
    taps, inputs = weight.shape[2], channels // groups
    points, hop, half = 2 * taps, taps + 1, taps + 1
    count = -(-time // hop)  # segments of a clip
    analysis, of_taps, synthesis = fourier(taps, x.device)
    behind = (count - 1) * hop + points - time - taps // 2
    segments = F.pad(x, (0, 0, taps // 2, behind)).unfold(1, points, hop).transpose(2, 3)
    spectrum = torch.matmul(analysis, segments).view(batch * count, 2, half, groups, inputs)
    spectrum = spectrum.permute(2, 3, 1, 0, 4).reshape(half * groups, 2 * batch * count, inputs)
    re, im = (of_taps @ weight.view(-1, taps).T).view(2, half * groups, inputs, inputs).transpose(2, 3)
    by_re, by_im = (torch.bmm(spectrum, part).view(half, groups, 2, batch * count, inputs) for part in (re, im))
    product = torch.stack((by_re[:, :, 0] - by_im[:, :, 1], by_re[:, :, 1] + by_im[:, :, 0]))
    product = product.permute(3, 0, 1, 2, 4).reshape(batch * count, 2 * half, channels)
    return torch.matmul(synthesis, product).view(batch, count * hop, channels)[:, :time]


@functools.lru_cache(maxsize=8)
def fourier(taps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Real transforms of 2 taps points as matrices, real above imaginary parts: of a segment, of the taps
    (conjugated), and back to the taps + 1 outputs of a segment that see no wrap-around.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        points, hop = 2 * taps, taps + 1
        angle = 2.0 * math.pi / points * torch.arange(taps + 1).outer(torch.arange(points)).remainder(points).double()
        cos, sin = angle.cos(), angle.sin()
        share = torch.full((taps + 1, 1), 2.0 / points, dtype=torch.float64)
        share[0] = share[-1] = 1.0 / points
        analysis = torch.cat((cos, -sin))
        of_taps = torch.cat((cos, sin))[:, :taps]
        synthesis = torch.cat((cos * share, -sin * share))[:, :hop].T
        matrices = (matrix.float().contiguous().to(device) for matrix in (analysis, of_taps, synthesis))
        first, second, third = matrices
        return first, second, third
