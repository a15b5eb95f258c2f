"""Memory of a training: the count of a dry step, an exhausted memory in mid-epoch, and BEATs' bias."""

import json
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from training_runs import CLASSES, FRAMES, SIZES, Soft, clips, run

from framekd.commands.doctor import _memory
from framekd.config import Config, Recipe, UserError
from framekd.data import Loader
from framekd.models import build_model
from framekd.train import Objective, RunOptions, Stopped, fit, torch_generator
from framekd.train.footprint import MARGIN, Footprint, fitting, footprint
from framekd.train.parallel import World
from framekd.train.step import Step


def recipe(**values):
    return Recipe(epochs=1, epoch_clips=8, batch_size=8, warmup_steps=2, distillation_weight=0.9, **values)


def real_peak(model, settings, goal):
    """The most that torch's CPU allocator holds in one step, beside what it held before; by torch's profiler.

    What lives only within a convolution's backward pass is left out: there oneDNN copies its inputs to other layouts.
    """
    batch = Loader(clips(), settings, seed=1, n_frames=FRAMES, soft=Soft()).batch(0)
    more = {"lr": 1e-4, "seed": 0, "total": 1, "world": World(), "clock": lambda part: None}
    step = Step(model.train(), settings, goal, None, **more)
    step.optimiser.step = lambda *_, **__: None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(0, batch)
    events = seen.profiler.kineto_results.events()
    within = [e for e in events if e.name() == "aten::convolution_backward"]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        if not any(0 <= event.start_ns() - e.start_ns() <= e.duration_ns() for e in within):
            peak = max(peak, now, now + event.nbytes())
        now += event.nbytes()
    return peak


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("ATST-F", {}),
        ("BEATs", {}),
        ("fPaSST", {}),
        ("M2D", {}),
        ("ASiT", {}),
        ("tiny", dict(sequence_model="bigru")),
    ],
)
def test_the_count_is_within_a_tenth_of_what_the_cpu_allocates(name, rest):
    model = build_model(name, n_classes=CLASSES, sizes=SIZES, **rest).init_weights(torch_generator(1))
    settings, goal = recipe(augment=dict(mixup=1.0)), Objective("strong", 0.9)
    found = footprint(model, settings, goal, frames=FRAMES, gpu=False)
    assert found.step == pytest.approx(real_peak(model, settings, goal), rel=0.1)
    assert all(type(p.data) is torch.Tensor for p in model.parameters())  # the model is as it was


def test_the_fewest_parts_that_fit_are_chosen(monkeypatch):
    """Activations shrink with the parts, weights do not; a batch of 8 has 1, 2, 4 or 8 parts."""
    count = lambda model, one, goal, frames: Footprint(100, 50, 800 // one.accumulate)  # noqa: E731
    monkeypatch.setattr(sys.modules["framekd.train.footprint"], "footprint", count)
    found = {memory: fitting(None, recipe(), None, int(memory / MARGIN) + 1) for memory in (950, 949, 350, 250, 249)}
    assert {memory: pair and pair[0] for memory, pair in found.items()} == {950: 1, 949: 2, 350: 4, 250: 8, 249: None}


def test_a_batch_that_does_not_fit_is_computed_in_parts_and_the_log_says_so(tmp_path, capsys):
    """The training ends in the weights of an undivided one, and the divided batches are smaller."""
    settings = Recipe(epochs=1, epoch_clips=12, batch_size=4, warmup_steps=2, augment=dict(mixup=0.5))
    goal = Objective("strong")
    make = lambda: build_model("fPaSST", n_classes=CLASSES, sizes=SIZES).init_weights(torch_generator(7))  # noqa: E731
    short = int((footprint(make(), settings, goal, frames=FRAMES).peak - 1) / MARGIN)
    weights, rows = [], []
    for name, memory in (("whole", None), ("halves", short)):
        model, seen = make(), []
        model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        options = RunOptions(progress=False, memory=memory)
        loader = Loader(clips(), settings, seed=5, n_frames=FRAMES)
        fit(model, loader, settings, lr=1e-3, seed=1, objective=goal, directory=tmp_path / name, options=options)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        rows.append(set(seen[-3:]))  # the count of the memory calls a copy of the model too
    assert rows == [{4}, {2}] and torch.allclose(*weights, atol=2e-4)
    (told,) = capsys.readouterr().out.splitlines()
    assert "for 4 clips in 1 parts" in told and told.endswith(": accumulate: 2 for this training")


@pytest.mark.parametrize("name", ["BEATs", "fPaSST"])
def test_parts_take_the_random_decisions_of_the_whole_batch(name):
    """Without dropout, which no kernel can draw in parts, the gradient is that of the undivided batch."""
    sizes, found = {**SIZES, "depth": 3}, []
    if name == "BEATs":
        sizes |= {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.5}
    for parts in (1, 4):
        settings, goal = recipe(accumulate=parts, augment=dict(mixup=1.0)), Objective("strong", 0.9)
        model = build_model(name, n_classes=CLASSES, sizes=sizes).init_weights(torch_generator(3)).train()
        batch = Loader(clips(), settings, seed=1, n_frames=FRAMES, soft=Soft()).batch(0)
        more = {"lr": 1e-4, "seed": 0, "total": 1, "world": World(), "clock": lambda part: None}
        step = Step(model, settings, goal, None, **more)
        step.optimiser.zero_grad = lambda **_: None
        step(0, batch)
        found.append({name: p.grad for name, p in model.named_parameters()})
    for key, value in found[0].items():
        other = found[1][key]
        assert (value is None) is (other is None), key
        assert value is None or torch.allclose(value, other, rtol=1e-4, atol=1e-6), key


def test_doctor_shows_the_memory_of_each_training_and_what_does_not_fit(capsys):
    small = Config.model_validate({"models": ["ATST-F"], "sizes": {"ATST-F": {"width": 24, "depth": 1, "heads": 2}}})
    assert _memory(small, 80.0) == []
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("accumulate on 80 GiB")
    assert [row.split()[:3] + row.split()[5:] for row in rows] == [
        ["ATST-F", stage, "256", "1"] for stage in ("student", "teacher", "step2")
    ]
    assert all(0 < float(row.split()[4]) < float(row.split()[3]) for row in rows)


def exhausted(at, calls=None):
    """A forward pass whose memory is too small once, at call `at`; `calls` collects its inputs."""
    calls = [] if calls is None else calls

    def forward(model, mel, generator):
        calls.append(mel)
        if len(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return model(mel, generator=generator)

    return forward


def test_an_exhausted_memory_saves_the_state_and_the_run_continues_in_more_parts(tmp_path):
    """It ends in the weights of a run that had enough memory, without a change of the configuration."""
    told = r"saved after step 7 of 20.*start the run again, it continues with accumulate: 2$"
    with pytest.raises(Stopped, match=told) as stopped:
        run("student", tmp_path / "small", forward=exhausted(8), save_steps=10_000)
    assert stopped.value.code == 75
    assert not (tmp_path / "small" / "model.safetensors").exists()
    seen = []
    _, steps = run("student", tmp_path / "small", forward=exhausted(-1, seen))
    assert steps == 13 and len(seen) == 26
    run("student", tmp_path / "whole")
    lines = [
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("small", "whole")
    ]
    assert len(lines[0]) == len(lines[1]) == 20
    for a, b in zip(*lines):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-4)


def test_weights_half_updated_are_not_saved(tmp_path, monkeypatch):
    """Memory that is exhausted within the optimiser leaves the state before it."""
    plain, calls = torch.optim.Adam.step, []

    def step(self, *rest):
        calls.append(1)
        if len(calls) == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(Stopped, match=r"the last saved state is kept.*write recipe: \{accumulate: 2\} and start"):
        run("student", tmp_path / "small", save_steps=3)
    _, steps = run("student", tmp_path / "small")
    assert steps == 20 - 6


def test_a_device_that_vanishes_costs_the_steps_since_the_last_state(tmp_path, monkeypatch):
    """Nothing of a lost device is saved, and the run ends in the bytes of an undisturbed one."""
    plain, calls = torch.optim.Adam.step, []

    def step(self, *rest):
        calls.append(1)
        if len(calls) == 8:
            for group in self.param_groups:  # what the device holds is worthless
                for parameter in group["params"]:
                    parameter.data.fill_(7.0)
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`")
        return plain(self, *rest)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    said = r"^cpu failed after step 7 of 20 \(CUDA error: unspecified launch failure\); the last saved state is kept: "
    with pytest.raises(UserError, match=said):
        run("student", tmp_path / "lost", save_steps=3)
    assert not (tmp_path / "lost" / "model.safetensors").exists()
    _, steps = run("student", tmp_path / "lost")
    assert steps == 20 - 6
    run("student", tmp_path / "whole")
    assert (tmp_path / "lost/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def gradients(recompute, monkeypatch, dropout):
    """Output and gradients of a BEATs in training, and the largest tensor that it keeps for the backward pass."""
    from framekd.models.beats import GatedAttention

    monkeypatch.setattr(GatedAttention, "recompute", recompute)
    sizes = {**SIZES, "dropout": dropout, "attention_dropout": dropout, "layerdrop": 0.0}
    model = build_model("BEATs", n_classes=CLASSES, sizes=sizes).init_weights(torch_generator(3)).train()
    mel = torch.randn(2, 1, 128, 200, generator=torch_generator(4))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.shape), t)[1], lambda t: t):
        frames, clip = model(mel, generator=torch_generator(5), outputs="logits")
    (frames.square().mean() + clip.square().mean()).backward()
    tokens = 96
    masks = sum(tuple(shape[-2:]) == (tokens, tokens) and shape[0] == 2 for shape in kept)
    return frames.detach(), {name: p.grad for name, p in model.named_parameters()}, masks


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputing_the_bias_of_beats_changes_nothing_and_keeps_no_mask(monkeypatch, dropout):
    plain, ours, kept = gradients(False, monkeypatch, dropout)
    again, theirs, spared = gradients(True, monkeypatch, dropout)
    assert torch.equal(plain, again)
    assert kept > 0 and spared == 0
    for name, value in ours.items():
        assert (value is None) is (theirs[name] is None)
        assert value is None or torch.equal(value, theirs[name]), name
