"""Downstream tasks: batched heads against heads one by one, and the crops that they are trained on."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from downstream_sets import CPU, QUICK, SHORT, toy_crops

from framekd import tasks
from framekd.config import HeadRecipe, Task, TrainRecipe, UserError
from framekd.data import Batch
from framekd.models import build_model
from framekd.tasks import frozen, transfer
from framekd.tasks.heads import losses
from framekd.train import Objective

pytest_plugins = ("downstream_fixtures",)


@pytest.mark.parametrize("frames", [1, 100, 250, 251, 300, 499, 500, 760, 3000])
def test_crops_cover_a_clip(frames):
    starts = frozen.crop_starts(frames, dense=False)
    assert starts[0] == 0 and all(b - a == 250 for a, b in itertools.pairwise(starts)) and starts[-1] + 250 >= frames
    dense = frozen.crop_starts(frames, dense=True)
    assert set(starts) <= set(dense) and all(s + 250 <= frames for s in set(dense) - set(starts))
    assert frames != 3000 or len(dense) == 23


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize(("optimiser", "decay", "clip"), [("adam", 0.0, None), ("adamw", 0.1, 0.05), ("sgd", 0.0, 0.1)])
def test_heads_trained_side_by_side_equal_heads_trained_alone(head, optimiser, decay, clip):
    crops, problem = toy_crops(2)
    recipe = HeadRecipe(
        epochs=3, epoch_clips=12, batch_size=4, learning_rate=0.05, warmup_steps=2, optimiser=optimiser,
        weight_decay=decay, clip_gradient=clip,
    )  # fmt: skip
    both = frozen.train(crops, problem, recipe, lr=0.05, head=head, device=CPU)
    for i, run in enumerate(problem.runs):
        alone = frozen.train(crops, dataclasses.replace(problem, runs=(run,)), recipe, lr=0.05, head=head, device=CPU)
        for name, value in alone.named_parameters():
            mine = getattr(both, name)
            mine = mine[i] if mine.ndim == 3 else mine.view(2, -1)[i]
            torch.testing.assert_close(mine, value.view_as(mine), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize(("optimiser", "decay", "clip"), [("adam", 0.0, None), ("adamw", 0.1, 0.05), ("sgd", 0.0, 0.1)])
def test_rates_tried_side_by_side_equal_rates_tried_alone(head, optimiser, decay, clip):
    crops, problem = toy_crops(2)
    recipe = HeadRecipe(
        epochs=3,
        epoch_clips=10,
        batch_size=4,
        warmup_steps=1,
        optimiser=optimiser,
        weight_decay=decay,
        clip_gradient=clip,
    )
    rates = [0.2, 0.003, 0.05]
    grid = frozen.train_rates(crops, problem, recipe, rates=rates, head=head, device=CPU)
    for lr, heads in zip(rates, grid):
        alone = frozen.train(crops, problem, recipe, lr=lr, head=head, device=CPU)
        for name, value in alone.named_parameters():
            torch.testing.assert_close(heads.get_parameter(name), value, atol=1e-5, rtol=1e-5)
    moved = [(grid[0].frame_weight - one.frame_weight).abs().max() for one in grid[1:]]
    assert min(moved) > 1e-4, "rates have heads of their own"


def test_a_rate_that_diverges_leaves_the_others_alone():
    crops, problem = toy_crops()
    recipe = HeadRecipe(epochs=3, epoch_clips=10, batch_size=4, optimiser="sgd", warmup_steps=0)
    grid = frozen.train_rates(crops, problem, recipe, rates=[1e39, 0.05], head="linear", device=CPU)
    assert isinstance(grid[0], int) and 0 < grid[0] < 9
    alone = frozen.train(crops, problem, recipe, lr=0.05, head="linear", device=CPU)
    torch.testing.assert_close(grid[1].frame_weight, alone.frame_weight, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=f"non-finite loss of the heads at step {grid[0]}; lower"):
        frozen.train(crops, problem, recipe, lr=1e39, head="linear", device=CPU)


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_batched_heads_compute_what_a_model_computes(head):
    model = build_model("tiny", n_classes=3, head=head)
    _, problem = toy_crops(2)
    heads = frozen.Heads(problem, model.embed_dim, attention=head == "attention", init="default")
    features = torch.randn(2, 4, 250, model.embed_dim)
    labels = (torch.rand(2, 4, 3, 250) < 0.2).float()
    both = {"strong": 0.0, "both": 0.0}
    for i in range(2):
        frame, clip = heads.of_run(i, features[i])
        for layer, name in ((model.frame_head, "frame"), (model.clip_head, "clip")):
            layer.weight.data = getattr(heads, f"{name}_weight")[i].detach().T.contiguous()
            layer.bias.data = getattr(heads, f"{name}_bias").detach().view(2, -1)[i]
        wanted_frame, wanted_clip = model.classify(features[i], outputs="logits")
        torch.testing.assert_close(frame.transpose(1, 2), wanted_frame, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip, wanted_clip, rtol=1e-4, atol=1e-4)
        strong = torch.tensor([True, True, False, False])
        columns = (torch.zeros(4),) * 3
        batch = Batch([""] * 4, *columns, labels[i], labels[i].amax(2), None, strong)
        both["both"] += Objective("both")(wanted_frame, wanted_clip, batch, slice(0, 4))
        both["strong"] += Objective("strong")(wanted_frame[:2], wanted_clip[:2], batch[:2], slice(0, 2))
    halves, weak = [features[:, :2], features[:, 2:]], labels.amax(3)[:, 2:]
    for kind, of_weak in (("strong", None), ("both", weak)):
        found = losses([heads, heads], halves, labels[:, :2], of_weak)
        torch.testing.assert_close(found, both[kind].detach().expand(2), rtol=1e-5, atol=1e-6)


def test_heads_begin_at_the_log_odds_of_each_run():
    _, problem = toy_crops(2)
    heads = frozen.Heads(problem, 6, attention=True, init="prior")
    for bias, run in zip(heads.frame_bias.detach().view(2, -1), problem.runs):
        np.testing.assert_allclose(bias, problem.log_odds(run), rtol=1e-5)
    assert heads.clip_bias.abs().max() < 1  # attention has no classes to be rare


def test_heads_learn_and_predict_the_test_clips():
    crops, problem = toy_crops()
    recipe = HeadRecipe(epochs=60, epoch_clips=5, batch_size=5, learning_rate=0.1, warmup_steps=2)
    heads = frozen.train(crops, problem, recipe, lr=0.1, head="linear", device=CPU)
    found = frozen.predict(heads, crops, problem, device=CPU, batch_size=2)
    assert [sorted(one) for one in found] == [[f"strong{i}" for i in range(5)]] * 2
    for one in found:
        values = np.stack([one[f"strong{i}"] for i in range(5)])
        truth = crops["strong"].frame_labels[:5].transpose(1, 2).numpy()
        assert ((values > 0.5) == truth).mean() > 0.9


def test_a_batch_that_the_parts_do_not_divide_is_refused(sets):
    crops, problem = toy_crops(2)
    with pytest.raises(UserError, match="not a multiple of 2"):
        frozen.train(crops, problem, HeadRecipe(batch_size=5), lr=0.1, head="linear", device=CPU)
    with pytest.raises(UserError, match="not a multiple of 2"):
        transfer.loader_of(problem, problem.runs[0], TrainRecipe(batch_size=5))


CHANGES = {
    "epochs": 4, "epoch_clips": 16, "batch_size": 2, "learning_rate": 0.02, "optimiser": "sgd", "betas": (0.5, 0.9),
    "momentum": 0.5, "weight_decay": 0.5, "schedule": "exp_linear", "warmup_steps": 3, "min_learning_rate": 0.005,
    "clip_gradient": 0.01, "head_init": "normal", "random_crop": False,
}  # fmt: skip
"""A change of each key of a frozen recipe."""


@pytest.mark.parametrize("key", [key for key in CHANGES if key != "random_crop"])
def test_every_key_of_a_frozen_recipe_changes_the_heads(key):
    other = {"precision": "acts on a GPU only", "per_model": "is resolved before the training"}
    other["unfinished_warmup"] = "only allows what is refused otherwise"
    assert set(CHANGES) | set(other) == set(HeadRecipe.model_fields)
    crops, problem = toy_crops()
    base = HeadRecipe(**{**SHORT, "optimiser": "sgd"} if key == "momentum" else SHORT)
    weights = []
    for recipe in (base, base.model_copy(update={key: CHANGES[key]})):
        heads = frozen.train(crops, problem, recipe, lr=recipe.rate("tiny"), head="linear", device=CPU)
        weights.append(heads.frame_weight.detach())
    assert not torch.allclose(*weights, rtol=1e-3, atol=1e-5)


def test_head_init_of_each_mode_acts_on_that_mode(sets, checkpoint, tmp_path, monkeypatch):
    seen, real = {}, frozen.train

    def heads(crops, problem, recipe, **how):
        seen.update(frozen=recipe.head_init)
        return real(crops, problem, recipe, **how)

    monkeypatch.setattr(transfer, "train", lambda model, *_, **__: seen.update(finetune=model.frame_head.bias.clone()))
    monkeypatch.setattr(frozen, "train", heads)
    for one, other in (("normal", "prior"), ("prior", "normal")):
        recipes = {"frozen": HeadRecipe(**SHORT, head_init=one), "finetune": TrainRecipe(**SHORT, head_init=other)}
        block = Task(data=str(sets / "dcase"), seeds=[1], **recipes)
        tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv")
        assert seen["frozen"] == one and bool((seen["finetune"] == 0).all()) == (other == "normal")


def test_crops_of_files_have_the_features_and_labels_of_their_place(sets):
    """A crop's features are those of its 10 s only, and its labels are where its events are."""
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0)).eval()
    crops = frozen.compute(model, problem, QUICK["frozen"], device=CPU)["files"]
    pool = problem.pools["files"]
    assert crops.start[:5].tolist() == [0, 125, 250, 375, 500]
    row = 1
    wave = pool.waveform(0)[125 * 640 : 375 * 640].astype(np.float32) / 32768
    with torch.no_grad():
        wanted = model.features(model.frontend(torch.from_numpy(wave)[None]))[0]
    torch.testing.assert_close(crops.features[row].float(), wanted, atol=2e-3, rtol=2e-3)  # float16
    assert (crops.features[0].float() - wanted).abs().max() > 0.1, "the next crop has other features"
    fixed = frozen.compute(model, problem, HeadRecipe(**SHORT, random_crop=False), device=CPU)["files"]
    assert fixed.start[:4].tolist() == [0, 250, 500, 0]
    events = [(a, b, c) for a, b, c in pool.ground_truth()[pool.ids[0]] if a > 5.2 and b < 14.8]
    for onset, offset, label in events:
        middle = round(((onset + offset) / 2 - 5) * 25)
        assert crops.frame_labels[row, pool.classes.index(label), middle] == 1
    assert events


def test_fresh_crops_are_cut_and_encoded_anew_for_every_batch(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1, 2]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0)).eval()
    recipe = HeadRecipe(**SHORT, random_crop="fresh")
    fresh = frozen.FreshCrops(model, problem, recipe, device=CPU)
    features, frame_labels, _ = fresh.batch(3, 0)
    assert features.shape == (2, 4, 250, model.embed_dim) and not torch.equal(features[0], features[1])
    starts = set()
    for loaders, found, labels in zip(fresh.loaders, features, frame_labels):
        batch = loaders[0].batch(3)
        starts |= set(batch.starts.tolist())
        with torch.no_grad():
            torch.testing.assert_close(found, model.features(model.frontend(batch.waveform)))
        assert torch.equal(labels, batch.frame_labels)
    assert any(start % 125 for start in starts), "not on the grid of 5 s"
    assert not torch.equal(features, fresh.batch(4, 0)[0])

    crops = frozen.compute(model, problem, recipe, device=CPU)
    assert crops["files"].start[:3].tolist() == [0, 250, 500], "the test clips in slices of 10 s"
    one, again = (
        frozen.train(crops, problem, recipe, lr=0.01, head="linear", device=CPU, fresh=fresh).frame_weight
        for _ in range(2)
    )
    grid = frozen.train(crops, problem, recipe, lr=0.01, head="linear", device=CPU).frame_weight
    assert torch.equal(one, again) and not torch.allclose(one, grid, atol=1e-4)


@pytest.mark.parametrize("crop", [True, "fresh"])
def test_the_recipe_decides_whether_crops_are_fresh(sets, checkpoint, tmp_path, monkeypatch, crop):
    seen, real = [], frozen.train

    def heads(*given, fresh, **how):
        seen.append(fresh is not None)
        return real(*given, fresh=fresh, **how)

    monkeypatch.setattr(frozen, "train", heads)
    recipes = {"frozen": HeadRecipe(**SHORT, random_crop=crop), "finetune": TrainRecipe(**SHORT)}
    block = Task(data=str(sets / "dcase"), seeds=[1], **recipes)
    tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv", modes=["frozen"])
    assert seen == [crop == "fresh"]
    with pytest.raises(ValueError, match="random_crop"):
        TrainRecipe(random_crop="fresh")
