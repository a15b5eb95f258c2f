"""Losses against values computed by hand and by torch."""

import math

import pytest
import torch
import torch.nn.functional as F

from framekd.losses import bce, distillation

Z = torch.tensor([[[0.0, 1.0], [-2.0, 3.0]], [[0.5, -0.5], [30.0, -30.0]]])
Y = torch.tensor([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]])
S = torch.tensor([[[0.25, 0.75], [0.5, 0.1]], [[0.9, 0.2], [1.0, 0.0]]])


def by_hand(weight, known=None):
    """Loss and gradient of the 2 x 2 x 2 case, element by element."""
    loss, gradient = 0.0, []
    for i, z in enumerate(Z.ravel().tolist()):
        p = 1 / (1 + math.exp(-z))
        log_p = -math.log1p(math.exp(-z)) if z > -20 else z
        log_q = -math.log1p(math.exp(z)) if z < 20 else -z
        y, s = Y.ravel().tolist()[i], S.ravel().tolist()[i]
        here = 1.0 if known is None else float(known.ravel()[i])
        for part, target in ((weight * here, s), (1 - weight, y)):
            loss -= part * (target * log_p + (1 - target) * log_q) / 8
        gradient.append((weight * here * (p - s) + (1 - weight) * (p - y)) / 8)
    return loss, torch.tensor(gradient).view(2, 2, 2)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 1.0])
def test_distillation_and_its_gradient_by_hand(weight):
    z = Z.clone().requires_grad_()
    value = distillation(z, Y, S, weight=weight)
    value.backward()
    loss, gradient = by_hand(weight)
    assert value.item() == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(z.grad, gradient, atol=1e-7)


def test_distillation_is_the_mix_of_two_losses():
    value = distillation(Z, Y, S, weight=0.9)
    mix = 0.9 * F.binary_cross_entropy_with_logits(Z, S) + 0.1 * F.binary_cross_entropy_with_logits(Z, Y)
    assert value.item() == pytest.approx(float(mix), rel=1e-6)


@pytest.mark.parametrize("place", [(slice(None), 1), (0,)], ids=["class", "clip"])
@pytest.mark.parametrize("weight", [0.9, 1.0])
def test_missing_soft_labels_have_no_soft_term(place, weight):
    soft = S.clone()
    soft[place] = torch.nan
    z = Z.clone().requires_grad_()
    value = distillation(z, Y, soft, weight=weight)
    value.backward()
    loss, gradient = by_hand(weight, ~soft.isnan())
    assert value.item() == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(z.grad, gradient, atol=1e-7) and z.grad.isfinite().all()


def test_bce_is_torchs_mean():
    assert float(bce(Z, Y)) == float(F.binary_cross_entropy_with_logits(Z, Y))


def test_bce_of_some_clips_ignores_the_others():
    labels = Y.clone()
    labels[1] = 0.7
    z = Z.clone().requires_grad_()
    value = bce(z, labels, clips=torch.tensor([True, False]))
    value.backward()
    assert value.item() == pytest.approx(float(F.binary_cross_entropy_with_logits(Z[:1], Y[:1])))
    assert not z.grad[1].any() and z.grad[0].any()


def test_bce_of_no_clips_is_zero_with_a_gradient():
    z = Z.clone().requires_grad_()
    value = bce(z, Y, clips=torch.zeros(2, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and not z.grad.any()


def test_micro_batch_losses_average_to_the_batch_loss():
    z = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    y, clips = (z > 0.3).float(), torch.tensor([1, 1, 0, 1, 0, 0], dtype=torch.bool)
    count = clips.sum() * 0.5
    halves = [bce(z[part], y[part], clips=clips[part], count=count) for part in (slice(0, 3), slice(3, 6))]
    assert float(sum(halves) / 2) == pytest.approx(float(bce(z, y, clips=clips)), rel=1e-6)
