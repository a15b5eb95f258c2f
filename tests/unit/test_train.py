"""The loop: several processes as one, parts of a batch as the whole, what is trained, kept and written."""

import json
import math
import platform
import sys

import pytest
import torch
from torch import nn
from training_runs import CLASSES, FRAMES, SIZES, Soft, clips, how_and_what, together

from framekd.config import Recipe, UserError
from framekd.data import Loader, MixedLoader, chunks
from framekd.memory import keep_freed_memory
from framekd.models import build_model
from framekd.train import (
    Objective,
    Stopped,
    Validation,
    derive,
    fit,
    launch,
    numpy_generator,
    torch_generator,
    validation_loss,
)

RECIPE = dict(epochs=2, epoch_clips=40, batch_size=8, warmup_steps=2)


def tiny(**options):
    return build_model("tiny", n_classes=CLASSES, sizes=SIZES, **options).init_weights(torch_generator(7))


def train(directory, model=None, *, loader=None, lr=1e-3, seed=11, kind="strong", recipe=None, validation=None, **more):
    values = {**RECIPE, **(recipe or {})}
    settings = Recipe(**values)
    model = model or tiny()
    loader = loader or Loader(clips(), settings, seed=5, n_frames=FRAMES, soft=Soft())
    goal = Objective(kind, settings.distillation_weight)
    if validation is not None:
        about = dict(every_epochs=settings.validate_epochs, select=settings.select, patience=settings.patience)
        more["validation"] = Validation(validation, **about)
    result = fit(model, loader, settings, lr=lr, seed=seed, objective=goal, directory=directory, **how_and_what(more))
    return model, result


def losses(result):
    return [line["train/loss"] for line in result.history if "train/loss" in line]


# ------------------------------------------------------------------------------------------- more than one process

MIXED = dict(distillation_weight=0.9, augment=dict(frame_shift=0.1, mixup=0.7, mixstyle=0.5, filter=0.5, freq_warp=0.5))


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Once as it is, once with batches in parts and clipped gradients; the last batch of an epoch is short."""
    recipes = {"plain": MIXED, "parts": {**MIXED, "accumulate": 2, "clip_gradient": 0.1, "ema": 0.9}}
    together(tmp_path / "one", 8, recipes)
    launch(together, tmp_path / "two", 8, recipes, processes=2)
    for name in recipes:
        one = json.loads((tmp_path / "one" / name / "rank0.json").read_text())
        two = [json.loads((tmp_path / "two" / name / f"rank{rank}.json").read_text()) for rank in (0, 1)]
        assert len(one["seen"]) == 20 and one["seen"] == two[0]["seen"] == two[1]["seen"]
        assert len(one["seen"][9]) == 5
        # Each process reads the clips of its own rows: halves, and 3 and 2 of the short batch.
        assert one["rows"][8:10] == [8, 5] and [mine["rows"][8:10] for mine in two] == [[4, 3], [4, 2]]
        for mine in two:
            for a, b in zip(one["history"], mine["history"], strict=True):
                assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)
        assert two[0]["weight"] == two[1]["weight"]
        assert torch.tensor(one["weight"]).allclose(torch.tensor(two[0]["weight"]), atol=1e-4)
        assert not (tmp_path / "two" / name / ".resume").exists()
        assert (tmp_path / "two" / name / "finished").read_text() == "rank 0\n"  # the result is written once


def test_accumulated_parts_equal_the_whole_batch(tmp_path):
    whole, a = train(tmp_path / "a", recipe=dict(augment=dict(mixup=1.0)))
    parts, b = train(tmp_path / "b", recipe=dict(augment=dict(mixup=1.0), accumulate=4))
    assert losses(a) == pytest.approx(losses(b), abs=1e-5)
    assert whole.frame_head.weight.allclose(parts.frame_head.weight, atol=1e-4)


# --------------------------------------------------------------------------------------------------- determinism


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path):
    recipe = dict(augment=dict(wavmix=0.5, frame_shift=0.1, mixup=0.5))
    a, _ = train(tmp_path / "a", recipe=recipe)
    torch.manual_seed(99)  # the global generator plays no part
    b, _ = train(tmp_path / "b", recipe=recipe)
    c, _ = train(tmp_path / "c", recipe=recipe, seed=12)
    assert torch.equal(a.frame_head.weight, b.frame_head.weight)
    assert not torch.equal(a.frame_head.weight, c.frame_head.weight)


def test_seeds_of_purposes_and_steps_are_unrelated():
    values = [derive(s, purpose, step) for s in (0, 1) for purpose in ("augment", "model") for step in range(500)]
    assert len(set(values)) == 2000 and derive(1, "augment", 2) == derive(1, "augment", 2)
    first = [numpy_generator(0, "augment", step).random() for step in range(2000)]
    assert abs(sum(first) / 2000 - 0.5) < 0.03
    assert torch.equal(
        torch.rand(3, generator=torch_generator(4, "x")), torch.rand(3, generator=torch_generator(4, "x"))
    )


# ------------------------------------------------------------------------------------------------ what is trained


def test_only_what_requires_a_gradient_is_trained(tmp_path):
    model, before = tiny(), tiny()
    model.encoder.requires_grad_(False)
    train(tmp_path, model)
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), before.encoder.parameters()))
    assert not torch.equal(model.frame_head.weight, before.frame_head.weight)


def test_a_forward_of_ones_own_is_used(tmp_path):
    calls = []

    def forward(model, mel, generator):
        calls.append(mel.shape)
        return model.classify(model.features(mel).detach())

    model, before = tiny(), tiny()
    train(tmp_path, model, forward=forward)
    assert len(calls) == 10
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), before.encoder.parameters()))


def test_layer_decay_slows_lower_layers(tmp_path):
    """Plain SGD steps are as long as the rate: what moves, moves by the factor of its depth."""
    recipe = dict(optimiser="sgd", momentum=0.0, epochs=1, epoch_clips=16, warmup_steps=1)
    moved = {}
    for decay in (1.0, 0.5):
        model, before = tiny(), tiny()
        train(tmp_path / str(decay), model, recipe=recipe | {"layer_decay": decay}, lr=1.0)
        way = {name: value - before.state_dict()[name] for name, value in model.state_dict().items()}
        moved[decay] = {
            name: float(way[name].norm()) for name in ("encoder.blocks.0.mlp.fc1.weight", "frame_head.weight")
        }
    low, head = (moved[0.5][name] / moved[1.0][name] for name in moved[1.0])
    assert low == pytest.approx(0.25, rel=1e-3) and head == pytest.approx(1.0, rel=1e-3)


def test_attention_heads_train_through_logits_on_mixed_batches(tmp_path):
    settings = Recipe(epochs=2, epoch_clips=40, batch_size=4, warmup_steps=2)
    loader = MixedLoader([Loader(clips(weak=weak), settings, seed=5, n_frames=FRAMES) for weak in (False, True)])
    model = build_model("tiny", n_classes=CLASSES, sizes=SIZES, head="attention").init_weights(torch_generator(7))
    about = how_and_what({"directory": tmp_path})
    result = fit(model, loader, settings, lr=3e-3, seed=1, objective=Objective("both"), **about)
    assert losses(result)[-1] < 0.8 * losses(result)[0]
    assert model.clip_head.weight.grad is None and model.head_outputs == "probabilities"


def test_weak_training_reaches_the_clip_head_alone(tmp_path):
    settings = Recipe(**RECIPE)
    model, before = tiny(), tiny()
    loader = Loader(clips(weak=True), settings, seed=5, n_frames=FRAMES)
    train(tmp_path, model, loader=loader, kind="weak")
    assert torch.equal(model.frame_head.weight, before.frame_head.weight)
    assert not torch.equal(model.clip_head.weight, before.clip_head.weight)


def test_distilling_without_an_ensemble_is_refused(tmp_path):
    settings = Recipe(**RECIPE, distillation_weight=0.9)
    with pytest.raises(UserError, match=r"write distillation_weight: 0\.0"):
        train(tmp_path, loader=Loader(clips(), settings, seed=5, n_frames=FRAMES), recipe=dict(distillation_weight=0.9))


# ---------------------------------------------------------------------------------------------- selection and log


def test_the_weights_of_the_lowest_validation_loss_are_kept(tmp_path):
    found, states = iter([0.5, 0.3, 0.4, 0.6, 0.9]), []

    def validation(model):
        states.append(model.frame_head.weight.detach().clone())
        return {"val/loss": next(found)}

    recipe = dict(epochs=5, validate_epochs=1, select="best_loss", validation_share=0.1)
    model, result = train(tmp_path, recipe=recipe, validation=validation)
    assert len(states) == 5 and result.kept_step == 10
    assert torch.equal(model.frame_head.weight, states[1])
    assert [line["val/loss"] for line in result.history if "val/loss" in line] == [0.5, 0.3, 0.4, 0.6, 0.9]


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_the_kept_weights_are_the_average_by_hand(tmp_path, optimiser):
    """The weights after each step are those of the run without an average; the kept ones follow from them."""
    plain, recipe = [], dict(optimiser=optimiser, epochs=2, validate_epochs=1)
    model = tiny()
    mean = {name: value.detach().clone() for name, value in model.named_parameters()}

    def clock(part):
        if part == "optimiser":
            plain.append({name: value.detach().clone() for name, value in model.named_parameters()})

    last, _ = train(tmp_path / "plain", model, recipe=recipe, clock=clock)
    seen = []

    def validation(model):
        seen.append(model.frame_head.weight.detach().clone())
        return {"val/loss": 1.0}

    averaged, _ = train(tmp_path / "ema", recipe=recipe | {"ema": 0.8}, validation=validation)
    for step, weights in enumerate(plain):
        mean = {name: 0.8 * value + 0.2 * weights[name] for name, value in mean.items()}
        if step == 4:
            assert torch.allclose(seen[0], mean["frame_head.weight"], atol=1e-7)
    assert len(plain) == 10
    for name, value in averaged.named_parameters():
        assert torch.allclose(value, mean[name], atol=1e-6), name
    assert torch.equal(seen[1], averaged.frame_head.weight)
    assert not torch.allclose(averaged.frame_head.weight, last.frame_head.weight, atol=1e-4)


def test_frozen_parameters_are_not_averaged_and_the_best_is_of_averages(tmp_path):
    found, states = iter([0.5, 0.3, 0.4]), []

    def validation(model):
        states.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        return {"val/loss": next(found)}

    recipe = dict(epochs=3, validate_epochs=1, select="best_loss", validation_share=0.1, ema=0.9)
    model, before = tiny(), tiny()
    model.encoder.requires_grad_(False)
    train(tmp_path, model, recipe=recipe, validation=validation)
    assert all(torch.equal(a, b) for a, b in zip(model.encoder.parameters(), before.encoder.parameters()))
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())


def test_patience_ends_a_run(tmp_path):
    found = iter([0.5, 0.6, 0.7, 0.8, 0.9])
    recipe = dict(epochs=5, validate_epochs=1, select="best_loss", validation_share=0.1, patience=2)
    _, result = train(tmp_path, recipe=recipe, validation=lambda model: {"val/loss": next(found)})
    assert result.steps == 15 and result.kept_step == 5


def test_validation_loss_is_the_mean_over_clips():
    model, data = tiny(), clips(7)
    got = validation_loss(
        model, chunks(data, 3, n_frames=FRAMES), objective=Objective("strong"), device=torch.device("cpu")
    )
    model.eval()
    with torch.no_grad():
        (batch,) = list(chunks(data, 7, n_frames=FRAMES))
        frames, _ = model(model.frontend(batch.waveform))
        expected = nn.functional.binary_cross_entropy_with_logits(frames, batch.frame_labels)
    assert got["val/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_history_and_provenance(tmp_path):
    done = []
    _, result = train(tmp_path, finish=done.append)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == result.history and [line["step"] for line in lines] == list(range(1, 11))
    assert set(lines[0]) == {"step", "train/loss", "train/lr", "train/clips_per_second"}
    assert [lines[i]["train/lr"] for i in (0, 1, 2)] == [0.0, 0.0005, 0.001]
    assert all(math.isfinite(line["train/loss"]) for line in lines)
    assert done[0] is result and result.provenance["device"] == "cpu" and result.provenance["hours"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl"]


def test_a_run_on_another_ensemble_starts_anew(tmp_path):
    class Named(Soft):
        identity = "the first"

    def loader():
        recipe = Recipe(**RECIPE, distillation_weight=0.9)
        return Loader(clips(), recipe, seed=5, n_frames=FRAMES, soft=Named())

    for name, steps in (("the first", 9), ("the second", 10)):
        seen = []
        with pytest.raises(Stopped):
            train(tmp_path / name, loader=loader(), recipe=dict(distillation_weight=0.9), time_limit=0.0)
        Named.identity = name
        train(tmp_path / name, loader=loader(), recipe=dict(distillation_weight=0.9), clock=seen.append)
        assert seen.count("data") == steps


def test_a_finish_that_fails_keeps_the_state(tmp_path):
    """A full disk at the very end costs the steps since the last save, not the run."""

    def finish(result):
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        train(tmp_path, finish=finish, save_steps=3)
    seen = []
    _, result = train(tmp_path, clock=seen.append)
    assert seen.count("data") == 1 and result.steps == 10


def test_freed_memory_is_kept_where_the_c_library_can():
    assert keep_freed_memory() is (sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc")


def test_kept_spectrograms_are_computed_once_per_clip_and_give_the_same_training(tmp_path, monkeypatch):
    computed: list[int] = []

    def final(name: str, **recipe) -> list[float]:
        model = tiny()
        frontend = model.frontend
        monkeypatch.setattr(model, "frontend", lambda x, **draws: computed.append(len(x)) or frontend(x, **draws))
        train(tmp_path / name, model, recipe=recipe)
        return [value.detach().abs().sum().item() for value in model.parameters()]

    expected = final("computed")
    assert computed == [8] * 10
    computed.clear()
    found = final("kept", keep_spectrograms=True)
    assert computed == [1] * 24  # every clip once, alone
    assert found == pytest.approx(expected, rel=1e-4)
