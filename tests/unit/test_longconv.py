"""The convolution through the frequency domain against torch's, with every gradient."""

import pytest
import torch
import torch.nn.functional as F

from framekd.models.longconv import same_conv


def direct(x, weight, bias, groups):
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return y[..., : x.shape[1]].transpose(1, 2)


@pytest.mark.parametrize("time", [1, 5, 17, 34, 100])
@pytest.mark.parametrize(("taps", "channels", "groups"), [(2, 4, 4), (16, 6, 2), (32, 8, 1)])
def test_output_and_gradients_are_torchs(time, taps, channels, groups):
    draw = torch.Generator().manual_seed(0)
    given = [
        torch.randn(shape, generator=draw) for shape in ((3, time, channels), (channels, channels // groups, taps))
    ]
    given.append(torch.randn(channels, generator=draw))
    toward = torch.randn(3, time, channels, generator=draw)
    results = []
    for conv in (lambda *args: direct(*args, groups), lambda *args: same_conv(*args, groups=groups)):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        y = conv(*leaves)
        results.append([y, *torch.autograd.grad((y * toward).sum(), leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_another_precision_is_torchs_own():
    x, weight, bias = torch.randn(1, 9, 4).double(), torch.randn(4, 4, 8).double(), torch.randn(4).double()
    assert torch.equal(same_conv(x, weight, bias, groups=1), direct(x, weight, bias, 1))
