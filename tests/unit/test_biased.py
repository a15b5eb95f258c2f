"""Attention with a gated bias, head by head, against the formula in torch's operations, with every gradient."""

import pytest
import torch

from framekd.models.biased import biased_attention
from framekd.models.dropout import dropout, scale


def leaves(batch=2, heads=3, tokens=21, dim=8):
    draw = torch.Generator().manual_seed(0)
    shapes = [(batch, tokens, heads, dim)] * 3 + [(batch, heads, tokens, 1), (1, heads, tokens, tokens)]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


def formula(q, k, v, gate, bias, kept=1.0):
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + gate * bias).softmax(dim=-1)
    return (weights * kept) @ v


def gradients(attend, given):
    q, k, v = (tensor.transpose(1, 2) for tensor in given[:3])
    mixed = attend(q, k, v, *given[3:])
    toward = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    return [mixed, *torch.autograd.grad((mixed * toward).sum(), given)]


def test_output_and_gradients_are_the_formulas():
    given = leaves()
    got = gradients(lambda *args: biased_attention(*args, dropout=0.0), given)
    for ours, expected in zip(got, gradients(formula, given), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        q, k, v = (tensor.transpose(1, 2) for tensor in given[:3])
        torch.testing.assert_close(biased_attention(q, k, v, *given[3:], dropout=0.0), got[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_its_rate_and_its_gradients(rate):
    """Values that are the identity show which weights were kept; the formula with these gives the gradients."""
    given = leaves(tokens=64, dim=64)
    with torch.no_grad():
        given[2].copy_(torch.eye(64).view(1, 64, 1, 64).expand(2, 64, 3, 64))

    def dropped(*args):
        torch.manual_seed(5)
        return biased_attention(*args, dropout=rate)

    got = gradients(dropped, given)
    kept = (got[0] != 0).float()
    assert abs(1.0 - kept.mean() - rate) < 0.02
    expected = gradients(lambda *args: formula(*args, kept=kept * scale(rate)), given)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation_and_follows_the_seed(rate):
    torch.manual_seed(3)
    x = torch.ones(300, 1001, requires_grad=True)
    one = dropout(x, rate)
    assert abs((one == 0).float().mean() - rate) < 5e-3 and abs(one.mean() - 1.0) < 0.02
    assert set(one.unique().tolist()) == {0.0, torch.tensor(scale(rate)).item()}
    assert abs(scale(rate) * (1.0 - rate) - 1.0) < 1e-4
    assert torch.equal(torch.autograd.grad(one.sum(), x)[0], one)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, rate), one) and not torch.equal(dropout(x, rate), one)
    assert dropout(x, 0.0) is x
