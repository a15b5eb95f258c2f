"""Downstream tasks: successive halving, a search in fine-tuning that drops rates early."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from downstream_sets import SEARCHED, choices, task

from framekd import tasks
from framekd.config import TaskSearch, UserError, load
from framekd.tasks import transfer
from framekd.tasks.choices import result_of
from framekd.tasks.halving import halve
from framekd.train import loop

pytest_plugins = ("downstream_fixtures",)
RATES_LEARNT = [0.01, 0.05, 0.02, 0.1]


def halving(share, **changes) -> dict:
    """The options of a search in fine-tuning that drops rates early."""
    return {
        "search": TaskSearch(finetune=RATES_LEARNT, halving=share),
        "finetune": SEARCHED["finetune"].model_copy(update={"epochs": 4, **changes}),
    }


def test_the_worse_half_is_dropped_after_a_share_of_the_epochs_twice_it_and_so_on():
    assert [TaskSearch(halving=share).rounds(100) for share in (0.25, 0.1, 0.6)] == [[25, 50], [10, 20, 40, 80], [60]]
    assert TaskSearch(halving=0.25).rounds(3) == [1, 2] and TaskSearch().rounds(100) == []
    asked = []

    def judged(rate, epochs):
        asked.append((rate, epochs))
        return result_of(rate, value=None if rate == 9 else rate / 10)

    left, lost = halve([3, 9, 1, 2, 4], [10, 20, 40, 80], 100, judged)
    rounds = [(10, (3, 9, 1, 2, 4)), (20, (3, 2, 4)), (40, (3, 4))]
    assert left == [4] and asked == [(rate, epochs) for epochs, rates in rounds for rate in rates]
    at = {one["learning_rate"]: one.get("dropped") for one in lost}
    assert at == {9: None, 1: "after 10 of 100 epochs", 2: "after 20 of 100 epochs", 3: "after 40 of 100 epochs"}
    assert halve([9], [10], 100, judged) == ([9], []) and halve([1, 2], [], 100, judged) == ([1, 2], [])


@pytest.mark.parametrize(("select", "ema"), [("last", 0.9), ("best", None)])
def test_the_rate_that_is_left_is_trained_as_alone_and_no_step_twice(
    sets, checkpoint, tmp_path, monkeypatch, select, ema
):
    real, weights, steps = transfer.predict, [], []

    def predict(model, problem, part, recipe, *, device):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(model, problem, part, recipe, device=device)

    class Counted(loop.Step):
        def __call__(self, step, batch):
            steps.append(step)
            return super().__call__(step, batch)

    monkeypatch.setattr(transfer, "predict", predict)
    monkeypatch.setattr(loop, "Step", Counted)
    about, out = dict(checkpoint="full", modes=["finetune"]), tmp_path / "o.csv"
    block = task(sets / "dcase", seeds=[1], select=select, **halving(0.25, ema=ema))
    tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=out, **about)
    epoch = block.finetune.steps() // 4
    assert len(steps) == (4 * 1 + 2 * 1 + 1 * 2) * epoch and sorted(set(steps)) == list(range(4 * epoch))
    [choice], kept = choices(out), weights[-1]
    assert choice["chosen_by"].endswith("; 3 of 4 rates dropped before the end (successive halving)")
    dropped = {one["learning_rate"]: one["dropped"] for one in choice["candidates"] if "dropped" in one}
    assert dropped.keys() == {*RATES_LEARNT} - {choice["learning_rate"]}
    assert sorted(dropped.values()) == ["after 1 of 4 epochs"] * 2 + ["after 2 of 4 epochs"]
    assert pd.read_csv(out, dtype=str)["rates_tried"].tolist() == ["4 (3 dropped early)"]

    given = block.finetune.model_copy(update={"learning_rate": choice["learning_rate"]})
    rates = {"finetune": given, "search": TaskSearch()}
    alone = tmp_path / "alone.csv"
    tasks.run("DC16-T2", block.model_copy(update=rates), "tiny", checkpoint, out_csv=alone, **about)
    assert all(torch.equal(value, kept[name]) for name, value in weights[-1].items())
    assert pd.read_csv(alone)["value"].tolist() == pd.read_csv(out)["value"].tolist()


def test_successive_halving_goes_on_where_it_was_interrupted(sets, checkpoint, tmp_path, monkeypatch):
    real, trained = transfer.train, []

    def train(*given, lr, epochs, **options):
        trained.append((lr, epochs))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(*given, lr=lr, epochs=epochs, **options)

    monkeypatch.setattr(transfer, "train", train)
    about, few = dict(checkpoint="full", modes=["finetune"]), TaskSearch(finetune=[0.05, 0.02, 0.1], halving=0.5)
    block = task(sets / "dcase", seeds=[1], **{**halving(0.5, epochs=2), "search": few})
    out, other = tmp_path / "o.csv", tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=out, **about)
    tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=out, **about)
    assert [epochs for _, epochs in trained] == [1, 1, 1, 1, None, None] and trained[2] == trained[3]
    tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=other, **about)
    assert out.read_bytes() == other.read_bytes() and choices(out) == choices(other)


def test_a_rate_that_diverges_early_is_dropped_and_if_all_do_one_sentence_says_so(
    sets, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("framekd.config.recipe.LARGEST_RATE", 1e40)
    how = halving(0.25, optimiser="sgd")
    wild = how | {"search": TaskSearch(finetune=[1e39, 0.02, 1e-9], halving=0.25)}
    out, about = tmp_path / "o.csv", dict(checkpoint="full", modes=["finetune"])
    tasks.run("DC16-T2", task(sets / "dcase", seeds=[1], **wild), "tiny", checkpoint, out_csv=out, **about)
    [choice] = choices(out)
    assert [("dropped" in one, one["diverged"] is None) for one in choice["candidates"]].count((False, False)) == 1
    assert pd.read_csv(out, dtype=str)["rates_tried"].tolist() == ["3 (1 dropped early)"]
    all_wild = how | {"search": TaskSearch(finetune=[1e39, 2e39], halving=0.25)}
    with pytest.raises(UserError, match=r"\(1e\+39, 2e\+39\); write lower ones into search: finetune"):
        tasks.run("DC16-T2", task(sets / "dcase", seeds=[1], **all_wild), "tiny", checkpoint, out_csv=out, **about)


def test_halving_that_drops_nothing_is_refused():
    for change, words in (
        ({"learning_rate": 0.1}, r"DESED: search\.halving acts in a search of fine-tuning; write .* or search: "),
        ({"epochs": 1}, r"DESED: search\.halving: a share of 0\.2 of 1 epochs is all or none; write 0\.25 or null"),
    ):
        with pytest.raises(UserError, match=words):
            load({"downstream": {"DESED": {"finetune": change, "search": {"halving": 0.2}}}})
