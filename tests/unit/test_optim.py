"""Schedule values, groups, and steps equal to torch's own optimisers."""

import copy
import math

import pytest
import torch
from torch import nn

from framekd.config import Recipe
from framekd.optim import build_optimiser, exp_linear, factor, set_rate

PAPER = Recipe(epochs=30)  # 11,730 steps, 5,000 of warm-up


def test_cosine_with_warm_up_at_the_steps_that_matter():
    total = PAPER.steps()
    assert total == 11_730
    at = lambda step: factor(step, PAPER, total=total, peak=1e-4)  # noqa: E731
    assert at(0) == 0.0
    assert at(1) == 1 / 5_000
    assert at(4_999) == 4_999 / 5_000
    assert at(5_000) == 1.0
    assert at(5_000 + 3_365) == pytest.approx(0.5, abs=1e-12)  # the middle of the 6,730 that follow
    assert at(total - 1) == pytest.approx(0.5 * (1 + math.cos(math.pi * 6_729 / 6_730)), abs=1e-15)
    assert at(total) == 0.0


def test_released_warm_up_never_ends():
    """With 20,000 steps of warm-up a teacher's rate peaks at 58.6 % on its last step."""
    recipe = Recipe(epochs=30, warmup_steps=20_000)
    values = [factor(step, recipe, total=recipe.steps(), peak=1e-4) for step in range(recipe.steps())]
    assert values == sorted(values) and round(100 * values[-1], 1) == 58.6


def test_cosine_ends_at_the_least_rate():
    recipe = Recipe(epochs=10, epoch_clips=100, batch_size=10, warmup_steps=0, min_learning_rate=1e-6)
    assert factor(0, recipe, total=100, peak=0.5) == 1.0
    assert factor(100, recipe, total=100, peak=0.5) * 0.5 == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("epoch", "value"),
    [
        (0, math.exp(-5 * (1 - 0.5 / 8) ** 2)),
        (1, math.exp(-5 * (7 / 8) ** 2)),
        (4, math.exp(-5 * 0.25)),
        (8, 1.0),
        (80, 1.0),
        (127.5, 0.01 + 0.99 * 0.5),
        (174, 0.01 + 0.99 * 1 / 95),
        (175, 0.01),
        (199, 0.01),
    ],
)
def test_exponential_flat_linear_over_200_epochs(epoch, value):
    assert exp_linear(epoch, epochs=200, warmup=8) == pytest.approx(value, rel=1e-12)


def test_exponential_schedule_is_constant_within_an_epoch():
    recipe = Recipe(epochs=200, epoch_clips=1200, batch_size=120, schedule="exp_linear", warmup_steps=80)
    values = [factor(step, recipe, total=2000, peak=8e-4) for step in range(2000)]
    for epoch in (0, 3, 8, 100, 199):
        expected = exp_linear(epoch, epochs=200, warmup=8)
        assert set(values[10 * epoch : 10 * epoch + 10]) == {expected}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.above, self.head, self.unused = (
            nn.Linear(7, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 3),
            nn.Linear(2, 2),
        )

    def forward(self, x):
        return self.head(torch.tanh(self.above(torch.tanh(self.below(x)))))

    groups = (("above.weight", "above.bias"), ("below.weight", "below.bias"))


def small():
    model = Small()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=draw)
    return model


def theirs(kind, model):
    parameters = list(model.parameters())
    if kind == "sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True)
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=0.1, weight_decay=0.01, fused=True)
    spared = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    return torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2]}, spared], lr=0.1, weight_decay=0.01, fused=True
    )


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_steps_equal_torchs_bit_for_bit(kind):
    mine = small()
    reference = copy.deepcopy(mine)
    optimiser = build_optimiser(mine, Recipe(optimiser=kind, weight_decay=0.01), lr=0.1)
    other, draw = theirs(kind, reference), torch.Generator().manual_seed(1)
    for step in range(25):
        set_rate(optimiser, 1 / (1 + step))
        for group in other.param_groups:
            group["lr"] = 0.1 / (1 + step)
        x = torch.randn(4, 7, generator=draw)
        for model, steps in ((mine, optimiser), (reference, other)):
            steps.zero_grad()
            model(x).square().sum().backward()
            steps.step()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), reference.parameters()))
    assert not torch.equal(mine.head.weight, small().head.weight)
    assert torch.equal(mine.unused.weight, small().unused.weight)


def test_layer_decay_falls_from_the_top_down():
    model = small()
    optimiser = build_optimiser(model, Recipe(layer_decay=0.5), lr=1.0, depth_groups=Small.groups)
    rates = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
    assert [rates[id(layer.weight)] for layer in (model.head, model.above, model.below)] == [1.0, 0.5, 0.25]
    assert len(rates) == 8


def test_layer_decay_without_groups_is_refused():
    with pytest.raises(ValueError, match="layer_decay needs"):
        build_optimiser(small(), Recipe(layer_decay=0.5), lr=1.0)


def test_frozen_parameters_are_left_out_and_all_frozen_is_refused():
    model = small()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        build_optimiser(model, Recipe(), lr=1.0)
    model.head.requires_grad_(True)
    optimiser = build_optimiser(model, Recipe(), lr=1.0)
    assert sum(len(g["params"]) for g in optimiser.param_groups) == 2


def test_decay_spares_vectors():
    optimiser = build_optimiser(small(), Recipe(optimiser="adamw", weight_decay=0.1), lr=1.0)
    assert {(p.ndim, g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]} == {(2, 0.1), (1, 0.0)}


def test_fp16_scaling_works_with_it():
    """A scaler undoes its factor before the step, and skips a step whose gradients overflow."""
    model, reference = small(), small()
    optimiser, plain = (build_optimiser(m, Recipe(), lr=0.1) for m in (model, reference))
    scaler, x = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.ones(4, 7)
    for scale in (1.0, float("inf"), 1.0):
        optimiser.zero_grad()
        scaler.scale(scale * model(x).square().sum()).backward()
        scaler.step(optimiser)
        scaler.update()
        if scale == 1.0:
            plain.zero_grad()
            reference(x).square().sum().backward()
            plain.step()
    assert scaler.get_scale() == 512.0
    assert all(torch.allclose(a, b) for a, b in zip(model.parameters(), reference.parameters()))
