"""Downstream tasks: complete runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from downstream_sets import CLASSES, CPU, QUICK, SHORT

from framekd import tasks
from framekd.config import HeadRecipe, Task, TrainRecipe
from framekd.models import build_model
from framekd.tasks import frozen, transfer

pytest_plugins = ("downstream_fixtures",)


@pytest.mark.parametrize(
    ("task", "folder", "options", "runs", "epochs", "least"),
    [
        ("DESED", "desed", {"head": "attention", "seeds": [1, 2], "median_seconds": 0.28}, ["1", "2"], 30, 0.1),
        ("DC16-T2", "dcase", {"seeds": [1]}, ["1"], 30, 0.1),
        ("MAESTRO", "maestro", {"seeds": [1], "median_seconds": 0.15}, [f"fold0{f}" for f in range(5)], 1, 0.0),
    ],
)  # fmt: skip
def test_every_task_learns_in_both_modes(sets, checkpoint, tmp_path, task, folder, options, runs, epochs, least):
    """Heads on random features find most tones; untrained heads find 5 % of them at most."""
    length = dict(epoch_clips=16, batch_size=4, warmup_steps=4)
    heads = HeadRecipe(**length, epochs=100, learning_rate=0.1, random_crop=False)
    whole = TrainRecipe(**length, epochs=epochs, learning_rate=0.01)
    block = Task(data=str(sets / folder), frozen=heads, finetune=whole, **options)
    tasks.run(task, block, "tiny", checkpoint, checkpoint="step1", out_csv=tmp_path / "o.csv")
    rows = pd.read_csv(tmp_path / "o.csv", dtype={"seed": str})
    assert rows["seed"].tolist() == runs * 2
    assert rows["mode"].tolist() == ["frozen"] * len(runs) + ["finetune"] * len(runs)
    assert {"task": task, "model": "tiny", "checkpoint": "step1"}.items() <= rows.iloc[0].to_dict().items()
    value = rows.groupby("mode")["value"].mean()
    assert 0.3 < value["frozen"] <= 1 and least <= value["finetune"] <= 1
    assert not list(tmp_path.glob(".*")), "working files were left"


@pytest.mark.parametrize(
    ("task", "folder", "options", "runs"),
    [
        ("DESED", "desed", {"head": "attention", "seeds": [1, 2]}, ["1", "2"]),
        ("DC16-T2", "dcase", {"seeds": [1]}, ["1"]),
        ("MAESTRO", "maestro", {"seeds": [1]}, [f"fold0{f}" for f in range(5)]),
    ],
)
def test_a_constant_guess_is_scored_by_the_task_itself(sets, checkpoint, tmp_path, task, folder, options, runs):
    block = Task(data=str(sets / folder), frozen=HeadRecipe(**SHORT), **options)
    out = tmp_path / "o.csv"
    tasks.run(task, block, "tiny", checkpoint, checkpoint="untrained", out_csv=out, modes=["frozen", "constant"])
    rows = pd.read_csv(out, dtype={"seed": str})
    assert rows.groupby("mode")["seed"].apply(list).to_dict() == {"frozen": runs, "constant": runs}
    problem = tasks.load(task, block)
    for one, value in zip(problem.runs, rows.loc[rows["mode"] == "constant", "value"], strict=True):
        guess = problem.constant(one)
        part, pool = one.train[0], problem.pools[one.train[0].pool]
        train = pool.select(part.clips)
        frames = np.maximum(-(-train.samples // 640), 250).sum()
        _, label, amount = train.activity()
        share = np.bincount(label, amount, minlength=len(problem.classes)) / frames
        for values in guess.values():
            np.testing.assert_allclose(values, np.broadcast_to(share, values.shape), atol=1e-3)
        assert list(guess) == [problem.pools[one.test.pool].ids[i] for i in one.test.clips]
        assert value == pytest.approx(problem.score(guess)["value"], abs=1e-6)


def test_a_constant_guess_above_the_threshold_is_one_event_a_file_and_class(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1], threshold=0.001))
    metrics = problem.score(problem.constant(problem.runs[0]))
    assert metrics["detected_events"] == 2 * len(CLASSES) and metrics["reference_events"] == 40


def test_the_same_run_twice_gives_the_same_bytes(sets, checkpoint, tmp_path):
    block = Task(data=str(sets / "dcase"), seeds=[1], **QUICK)
    for name in ("first.csv", "second.csv"):
        tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="step1", out_csv=tmp_path / name)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_frozen_leaves_the_encoder_alone_and_finetuning_does_not(sets, checkpoint, tmp_path):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    frozen.compute(model, problem, QUICK["frozen"], device=CPU)
    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())
    recipe = TrainRecipe(**SHORT, layer_decay=0.5)
    transfer.train(model, problem, problem.runs[0], recipe, directory=tmp_path, device=CPU)
    moved = [name for name, value in model.encoder.named_parameters() if not torch.equal(before[name], value)]
    assert len(moved) > len(before) // 2


def test_finetuned_runs_of_an_interrupted_job_are_not_repeated(sets, checkpoint, tmp_path, monkeypatch):
    block = Task(data=str(sets / "dcase"), seeds=[1, 2], **QUICK)
    out = tmp_path / "o.csv"
    trained = []
    real = transfer.train

    def train(model, problem, run, *args, **options):
        if run.name == "2" and trained == ["1"]:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(run.name)
        return real(model, problem, run, *args, **options)

    monkeypatch.setattr(transfer, "train", train)
    arguments = {"checkpoint": "full", "out_csv": out, "modes": ["finetune"]}
    with pytest.raises(KeyboardInterrupt):
        tasks.run("DC16-T2", block, "tiny", checkpoint, **arguments)
    assert not out.exists()
    tasks.run("DC16-T2", block, "tiny", checkpoint, **arguments)
    assert trained == ["1", "killed", "2"]
    again = pd.read_csv(out)
    tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "p.csv", modes=["finetune"])
    pd.testing.assert_frame_equal(again, pd.read_csv(tmp_path / "p.csv"))
    assert trained == ["1", "killed", "2", "1", "2"]
