"""Downstream tasks: learning rates chosen, and weights selected, on validation clips and never on test clips."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from downstream_sets import CLASSES, CPU, RATES, SEARCHED, choices, task, tone_file, toy_crops, write_desed

from framekd import tables, tasks
from framekd.checks import checked
from framekd.cli import main
from framekd.config import Config, HeadRecipe, OwnTask, TaskSearch, UserError, identity, load
from framekd.layouts import lists
from framekd.plan import Plan
from framekd.tasks import frozen, transfer
from framekd.tasks.problem import Part, hold_out
from framekd.train import Diverged

pytest_plugins = ("downstream_fixtures",)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Train.tsv, test.tsv and recordings of a further task."""
    root, draw = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        lines = ["filename\tonset\toffset\tevent_label"]
        for k in range(count):
            rows = tone_file(root / f"{split}{k}.wav", draw, seconds=8, events=4, classes=2)
            lines += [f"{split}{k}.wav\t{a:.3f}\t{b:.3f}\t{CLASSES[c]}" for a, b, c in rows]
        (root / f"{split}.tsv").write_text("\n".join([*lines, ""]))
    return root


def with_rate(rate, **changes) -> dict:
    """The recipes of both modes, with a rate and other changes."""
    return {m: SEARCHED[m].model_copy(update={"learning_rate": rate, **changes}) for m in ("frozen", "finetune")}


# ------------------------------------------------------------------------------------------------ validation clips


@pytest.mark.parametrize(("name", "folder"), [("DESED", "desed"), ("DC16-T2", "dcase"), ("MAESTRO", "maestro")])
def test_validation_clips_are_neither_trained_on_nor_tested(sets, name, folder):
    problem = tasks.load(name, task(sets / folder))
    for run in problem.runs:
        assert len(run.valid) == len(run.train) == len(problem.kinds())
        used = [(part.pool, clip) for part in (*run.train, *run.valid, run.test) for clip in part.clips.tolist()]
        assert len(used) == len(set(used))
    groups = problem.judged_together()
    assert groups == ([[f] for f in range(5)] if name == "MAESTRO" else [[0, 1]])
    if name == "MAESTRO":
        assert [run.valid[0].clips.tolist() for run in problem.runs] == [[1], [2], [3], [4], [0]]
    if name == "DC16-T2":
        assert {problem.pools["files"].ids[i][:5] for i in problem.runs[0].valid[0].clips} == {"valid"}


def test_desed_holds_out_nothing_unless_something_is_judged_and_takes_the_official_clips(tmp_path):
    root = write_desed(tmp_path / "set", weak=12, synthetic=12, validation=2)
    given = {
        mode: recipe.model_copy(update={"learning_rate": 0.01}) for mode, recipe in SEARCHED.items() if mode != "search"
    }
    whole = tasks.load("DESED", task(root, **given))
    assert whole.judge is None and whole.runs[0].valid == ()
    assert [len(part.clips) for part in whole.runs[0].train] == [12, 12]
    for block in (task(root), task(root, **given, select="best")):
        run = tasks.load("DESED", block).runs[0]
        assert [len(part.clips) for part in run.train] == [9, 9] and [len(part.clips) for part in run.valid] == [3, 3]
    other = tasks.load("DESED", task(root, search=SEARCHED["search"].model_copy(update={"seed": 2}))).runs[0]
    assert any((a.clips != b.clips).any() for a, b in zip(run.valid, other.valid))

    for kind in ("metadata", "audio"):
        shutil.copytree(root / kind / "train/synthetic21_train", root / kind / "validation/synthetic21_validation")
    run = tasks.load("DESED", task(root)).runs[0]
    assert [(p.pool, len(p.clips)) for p in run.train] == [("synthetic", 12), ("weak", 9)]
    assert [(p.pool, len(p.clips)) for p in run.valid] == [("judging", 12), ("weak", 3)]


def test_desed_is_judged_on_synthetic_and_on_weak_clips(sets):
    problem = tasks.load("DESED", task(sets / "desed"))
    synthetic, weak = (problem.pools[part.pool].select(part.clips) for part in problem.runs[0].valid)
    silent = [{name: np.zeros((250, 4), np.float32) for name in pool.ids} for pool in (synthetic, weak)]
    perfect = [{name: np.zeros((250, 4), np.float32) for name in pool.ids} for pool in (synthetic, weak)]
    for name, events in synthetic.ground_truth().items():
        for onset, offset, label in events:
            perfect[0][name][round(onset * 25) : round(offset * 25), synthetic.classes.index(label)] = 1
    for i, name in enumerate(weak.ids):
        perfect[1][name][100, weak.label[weak.start[i] : weak.start[i + 1]]] = 1
    assert problem.judge(perfect) == pytest.approx(1.0) and problem.judge(silent) == pytest.approx(0.0)
    assert problem.judge([perfect[0], silent[1]]) == problem.judge([silent[0], perfect[1]]) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["psds1", "onset_f"])
def test_a_further_task_is_judged_on_its_own_table_or_on_a_share(birds, tmp_path, metric):
    root = shutil.copytree(birds, tmp_path / "birds")
    block = OwnTask(data=str(root), metric=metric, **SEARCHED)
    problem = tasks.load("birds", block)
    assert [len(part.clips) for part in (*problem.runs[0].train, *problem.runs[0].valid)] == [4, 2]
    header, *lines = (root / "train.tsv").read_text().splitlines()
    for split, wanted in (("valid", True), ("train", False)):
        rows = [line for line in lines if line.startswith(("train0", "train1", "train2")) == wanted]
        (root / f"{split}.tsv").write_text("\n".join([header, *rows, ""]))
    problem = tasks.load("birds", block)
    pool, run = problem.pools["files"], problem.runs[0]
    assert [pool.ids[i] for i in run.valid[0].clips] == ["train0.wav", "train1.wav", "train2.wav"]
    truth = {}
    for i in run.valid[0].clips:
        truth[pool.ids[i]] = np.zeros((-(-int(pool.samples[i]) // 640), 2), np.float32)
        for k in range(pool.start[i], pool.start[i + 1]):
            truth[pool.ids[i]][pool.begin[k] : pool.end[k], pool.label[k]] = 1
    assert problem.judge([truth]) == pytest.approx(1.0)
    (root / "test.tsv").write_text((root / "test.tsv").read_text() + lines[0] + "\n")
    with pytest.raises(UserError, match=r"1 of 4 files are in valid\.tsv too"):
        tasks.load("birds", block)


def test_a_share_that_leaves_nothing_is_refused():
    train, held = hold_out(np.arange(5, 15), 0.1, seed=1, what="clips")
    assert len(held) == 1 and sorted([*train, *held]) == list(range(5, 15))
    for share in (0.0, 0.99):
        with pytest.raises(UserError, match=r"clips: a share of .* of 10 training clips .*write search: {share: 0\.1}"):
            hold_out(np.arange(10), share, seed=1, what="clips")


# ------------------------------------------------------------------------------------------------------ the choice


def test_frozen_rates_are_chosen_on_validation_clips_and_the_run_is_that_of_the_rate(sets, checkpoint, tmp_path):
    out = tmp_path / "o.csv"
    arguments = dict(checkpoint="step1", modes=["frozen"])
    tasks.run("DC16-T2", task(sets / "dcase"), "tiny", checkpoint, out_csv=out, **arguments)
    rows = pd.read_csv(out, dtype=str)
    [choice] = choices(out)
    assert choice["mode"] == "frozen" and choice["runs"] == ["1", "2"]
    assert [one["learning_rate"] for one in choice["candidates"]] == sorted(RATES)
    values = {one["learning_rate"]: one["value"] for one in choice["candidates"]}
    assert choice["learning_rate"] == max(values, key=values.get) != 1e-9 and values[1e-9] < 0.1
    assert choice["chosen_by"] == "highest value on 1 validation clip, mean of 2 runs; of equal rates the lower"
    assert rows["learning_rate"].tolist() == [f"{choice['learning_rate']:g}"] * 2
    assert rows["rates_tried"].tolist() == ["3", "3"]

    given = SEARCHED["frozen"].model_copy(update={"learning_rate": choice["learning_rate"]})
    alone = tmp_path / "alone.csv"
    tasks.run("DC16-T2", task(sets / "dcase", frozen=given), "tiny", checkpoint, out_csv=alone, **arguments)
    again = pd.read_csv(alone, dtype=str)
    np.testing.assert_allclose(again["value"].astype(float), rows["value"].astype(float), atol=1e-5)
    assert again["rates_tried"].tolist() == ["1", "1"]
    assert choices(alone)[0] == {**choice, "chosen_by": "given", "candidates": []}


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_only_what_validation_clips_chose_sees_test_clips(sets, checkpoint, tmp_path, monkeypatch, mode):
    """The judge prefers the useless rate; test clips are predicted by the winner alone, once a run."""
    real, tested = transfer.load, []

    def loaded(name, options):
        problem = real(name, options)
        means = iter([0.9, 0.8] if mode == "finetune" else [0.9, 0.9, 0.8, 0.8])
        score = lambda predictions: tested.append(1) or problem.score(predictions)  # noqa: E731
        return dataclasses.replace(problem, score=score, judge=lambda parts: next(means))

    monkeypatch.setattr(transfer, "load", loaded)
    block = task(sets / "dcase", search=TaskSearch(frozen=[1e-9, 0.1], finetune=[1e-9, 0.02]))
    out = tmp_path / "o.csv"
    tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=out, modes=[mode])
    assert choices(out)[0]["learning_rate"] == 1e-9 and len(tested) == 2
    assert pd.read_csv(out, dtype=str)["learning_rate"].tolist() == ["1e-09"] * 2


def test_each_fold_has_the_rate_of_its_own_validation_fold(sets, checkpoint, tmp_path):
    out = tmp_path / "o.csv"
    tasks.run("MAESTRO", task(sets / "maestro"), "tiny", checkpoint, checkpoint="step1", out_csv=out, modes=["frozen"])
    found = choices(out)
    assert [one["runs"] for one in found] == [[f"fold0{f}"] for f in range(5)]
    assert all(one["chosen_by"].startswith("highest value on 1 validation clip, run fold0") for one in found)
    assert pd.read_csv(out, dtype=str)["learning_rate"].tolist() == [f"{one['learning_rate']:g}" for one in found]


def test_a_rate_that_diverges_is_worst_and_no_failure(sets, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("framekd.config.recipe.LARGEST_RATE", 1e40)
    wild = SEARCHED["search"].model_copy(update={"frozen": [1e39, 0.1], "finetune": [1e39, 0.02]})
    sgd = with_rate("search", optimiser="sgd")
    out = tmp_path / "o.csv"
    tasks.run("DC16-T2", task(sets / "dcase", search=wild, **sgd), "tiny", checkpoint, checkpoint="full", out_csv=out)
    for choice, rate in zip(choices(out), (0.1, 0.02)):
        assert choice["learning_rate"] == rate
        [diverged] = [one for one in choice["candidates"] if one["value"] is None]
        assert re.search("not finite|loss is nan", diverged["diverged"])
    only = wild.model_copy(update={"frozen": [1e39], "finetune": [1e39]})
    for mode in ("frozen", "finetune"):
        with pytest.raises(UserError, match=rf"\(1e\+39\); write lower ones into search: {mode}"):
            block = task(sets / "dcase", search=only, **sgd)
            tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=out, modes=[mode])
    given = sgd["finetune"].model_copy(update={"learning_rate": 1e39})
    with pytest.raises(Diverged):
        block = task(sets / "dcase", **{**sgd, "finetune": given})
        tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=out, modes=["finetune"])


def test_a_search_in_finetuning_goes_on_where_it_was_interrupted(sets, checkpoint, tmp_path, monkeypatch):
    trained, real = [], transfer.train

    def train(model, problem, run, recipe, **options):
        if (run.name, options["lr"]) == ("1", 0.02) and len(trained) == 1:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append((run.name, options["lr"]))
        return real(model, problem, run, recipe, **options)

    monkeypatch.setattr(transfer, "train", train)
    block, arguments = task(sets / "dcase"), dict(checkpoint="full", modes=["finetune"])
    out, other = tmp_path / "o.csv", tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=out, **arguments)
    tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=out, **arguments)
    [choice] = choices(out)
    assert trained == [("1", 1e-9), "killed", ("1", 0.02), ("2", choice["learning_rate"])]
    assert choice["chosen_by"].startswith("highest value on 1 validation clip, run 1;")
    tasks.run("DC16-T2", block, "tiny", checkpoint, out_csv=other, **arguments)
    assert out.read_bytes() == other.read_bytes() and choices(out) == choices(other)


# ----------------------------------------------------------------------------------------------- selected weights


def judged(parts: int):
    crops, problem = toy_crops(parts)
    held, runs = np.array([2, 7]), []
    for source in crops.values():  # their labels are the opposite of what is learnt
        for labels in (source.frame_labels, source.clip_labels):
            if labels is not None:
                labels[held] = 1 - labels[held]
    for run in problem.runs:
        train = tuple(Part(part.pool, np.setdiff1d(part.clips, held)) for part in run.train)
        runs.append(dataclasses.replace(run, train=train, valid=tuple(Part(name, held) for name in crops)))
    return crops, dataclasses.replace(problem, runs=tuple(runs))


@pytest.mark.parametrize(("parts", "head"), [(1, "linear"), (2, "linear"), (2, "attention")])
def test_heads_of_the_lowest_validation_loss_are_kept_by_rate_and_run(parts, head, monkeypatch):
    crops, problem = judged(parts)
    recipe = HeadRecipe(epochs=12, epoch_clips=8, batch_size=4, warmup_steps=2)
    real, seen = frozen.validation_losses, []

    def losses(heads, *given, **options):
        seen.append((heads, real(heads, *given, **options)))
        return seen[-1][1]

    monkeypatch.setattr(frozen, "validation_losses", losses)
    rates = [0.01, 3.0]
    found = frozen.train_rates(crops, problem, recipe, rates=rates, head=head, device=CPU, select="best")
    last = frozen.train_rates(crops, problem, recipe, rates=rates, head=head, device=CPU)
    for heads, unselected in zip(found, last):
        of_rate = torch.stack([values for one, values in seen if one is heads])
        assert of_rate.shape == (12, 2)
        how = dict(batch_size=1, device=CPU)
        torch.testing.assert_close(real(heads, crops, problem, **how), of_rate.min(0).values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(real(unselected, crops, problem, **how), of_rate[-1], rtol=1e-5, atol=1e-6)
        assert (of_rate.argmin(0) < 11).all(), "best before its end"


def test_finetuning_keeps_the_weights_of_the_lowest_validation_loss(sets, checkpoint, tmp_path, monkeypatch):
    asked, real = [], transfer.fit
    monkeypatch.setattr(transfer, "fit", lambda *given, **how: asked.append(real(*given, **how)) or asked[-1])
    given = {
        mode: SEARCHED[mode].model_copy(update={"learning_rate": 0.05, "epochs": 4}) for mode in ("frozen", "finetune")
    }
    for name, folder in (("DESED", "desed"), ("DC16-T2", "dcase")):
        block = task(sets / folder, **given, select="best", seeds=[1])
        tasks.run(name, block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv", modes=["finetune"])
        losses = {line["step"]: line["val/loss"] for line in asked[-1].history if "val/loss" in line}
        assert len(losses) == 4 and asked[-1].kept_step == min(losses, key=losses.get)


# ------------------------------------------------------------------------------------- configuration and plan-time


def test_the_paper_searches_each_task_and_further_tasks_do_not():
    config = Config()
    for name, block in config.downstream.named.items():
        assert block.frozen.learning_rate == block.finetune.learning_rate == "search", name
    assert [block.select for block in config.downstream.named.values()] == ["best", "last", "best"]
    assert not OwnTask().validates
    with pytest.raises(UserError, match=r"recipe\.learning_rate: only a stage or a task searches"):
        load({"recipe": {"learning_rate": "search"}})


def test_a_job_holds_of_a_search_what_acts_in_it():
    from types import SimpleNamespace

    def job(model="BEATs", **block):
        plan = Plan(load({"downstream": {"DC16-T2": block}}))
        wildcards = SimpleNamespace(task="DC16-T2", checkpoint="full", model=model)
        return plan.downstream_job(wildcards, plan.packs([model])[0])

    rates = {"learning_rate": 0.1}
    both = {"frozen": rates, "finetune": rates}
    assert job(**both) == job(**both, search={"frozen": [1.0], "finetune": [1.0], "share": 0.5})
    half = {"finetune": rates}
    assert job(**half) == job(**half, search={"finetune": [1.0]}) != job(**half, search={"frozen": [1.0]})
    assert job(**both, select="best") != job(**both, select="best", search={"share": 0.5})
    assert job() != job(search={"halving": 0.25})
    assert "halving" not in identity(job())["options"]["BEATs"]["search"], "results from before this key count"
    assert identity(job(search={"halving": 0.25}))["options"]["BEATs"]["search"]["halving"] == 0.25
    some = {"learning_rate": {"BEATs": 0.1, "M2D": "search", "ATST-F": 0.1, "fPaSST": 0.1, "ASiT": 0.1}}
    assert job(finetune=some) == job(finetune=some, search={"halving": 0.25})
    assert job("M2D", finetune=some) != job("M2D", finetune=some, search={"halving": 0.25})
    one = {"learning_rate": {"BEATs": "search", "M2D": 0.1, "ATST-F": 0.1, "fPaSST": 0.1, "ASiT": 0.1}}
    assert job(frozen=one).options["BEATs"].frozen.learning_rate == "search"
    assert job("M2D", frozen=one).options["M2D"].frozen.learning_rate == 0.1


MISTAKES = [
    ("DESED", "search: {frozen: []}", ["search.frozen", "at least one; write frozen: [1.0e-4"]),
    ("DESED", "search: {finetune: [1.0e-3, 1.0e-3]}", ["search.finetune", "different positive rates"]),
    ("MAESTRO", "search: {frozen: [0.1, -0.1]}", ["search.frozen", "positive rates up to 10"]),
    ("MAESTRO", "search: {frozen: [100.0]}", ["search.frozen", "up to 10"]),
    ("DC16-T2", "search: {share: 1.0}", ["search.share", "less than 1"]),
    ("DESED", "search: {halving: 1.0}", ["search.halving", "less than 1"]),
    ("DESED", "search: {halving: 0.2, finetune: [0.1]}", ["halving drops nothing of a grid of one"]),
    ("DESED", "search: {share: 0}", ["search.share is 0", "write search: {share: 0.1}", "select: last"]),
    ("DC16-T2", "data: BARE", ["DC16-T2.data", "has no valid.json", "complete or remove the folder"]),
    ("MAESTRO", "data: BARE", ["MAESTRO.data", "has no fold00.json and 2 other lists"]),
    (
        "tasks",
        "own: {data: BARE, frozen: {learning_rate: search}, search: {share: 0}}",
        ["own.search", "valid.tsv"],
    ),
    ("tasks", "own: {data: BARE, select: best, search: {share: 0}}", ["own.search", "valid.tsv"]),
]


@pytest.mark.parametrize(("name", "line", "words"), MISTAKES)
def test_a_wrong_search_is_one_sentence_before_a_run(name, line, words, tmp_path, capsys):
    folders = {"DESED": "desed", "DC16-T2": "dc16", "MAESTRO": "maestro"}
    made = [file for task, folder in folders.items() for file in lists(task, tmp_path / folder)]
    bare = ("labelvocabulary.csv", "train.json", "test.json", "train.tsv", "test.tsv")  # nothing that judges
    for file in map(Path, [*made, *(tmp_path / "bare" / name for name in bare)]):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    path, base = tmp_path / "mine.yaml", tmp_path / "base.yaml"
    data = {task: {"data": str(tmp_path / folder)} for task, folder in folders.items()}
    base.write_text(json.dumps({"downstream": data}))
    path.write_text(f"downstream:\n  {name}:\n    {line.replace('BARE', str(tmp_path / 'bare'))}")
    with pytest.raises(UserError) as caught:
        checked([base, path], targets=["results/table2.csv"])
    [said] = str(caught.value).splitlines()
    assert said.startswith(f"{path}, line 3: downstream.") and all(word in said for word in words), said
    assert main(["doctor", "--configfile", str(base), str(path), "--", "results/table2.csv"]) == 1
    assert f"- {said}\n" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- the table


def test_table_2_prints_the_rates_that_were_chosen(tmp_path):
    paths = []
    for k, checkpoint_name in enumerate(("step1", "full")):
        rows = []
        for mode, run in (("frozen", "fold00"), ("frozen", "fold01"), ("finetune", "fold00"), ("finetune", "fold01")):
            rate = {"frozen": "0.001" if run == "fold00" or k else "0.01", "finetune": "3e-05"}[mode]
            about = {"task": "MAESTRO", "model": "BEATs", "checkpoint": checkpoint_name, "mode": mode, "seed": run}
            rows.append({**about, "learning_rate": rate, "rates_tried": 6 if mode == "frozen" else 1, "value": 0.2})
        paths.append(tmp_path / f"{checkpoint_name}.csv")
        pd.DataFrame(rows).to_csv(paths[-1], index=False)
    frame = tables.write_table("table2", paths, tmp_path / "table2.csv")
    written = pd.read_csv(tmp_path / "table2.csv", dtype=str).fillna("")
    assert written["learning_rate"].tolist()[:4] == ["0.001, 0.01", "3e-05", "0.001", "3e-05"]
    assert written.loc[written["model"] == "average", "learning_rate"].tolist() == [""] * 4
    page = (tmp_path / "table2.md").read_text()
    assert "| BEATs | Step 1 | 0.001, 0.01 of 6 | 3e-05 |" in page and "| BEATs | full | 0.001 of 6 | 3e-05 |" in page
    assert tables.wide_rates(pd.read_csv(tmp_path / "table2.csv")).equals(tables.wide_rates(frame))
    assert "chosen on validation clips" in (tmp_path / "table2.tex").read_text()
    assert "dropped" not in page
    for path in paths:
        pd.read_csv(path, dtype=str).assign(rates_tried="4 (3 dropped early)").to_csv(path, index=False)
    tables.write_table("table2", paths, tmp_path / "table2.csv")
    page = (tmp_path / "table2.md").read_text()
    assert "| 0.001, 0.01 of 4 (3 dropped early) |" in page and "not trained to the end (successive halving)" in page
    again = pd.read_csv(tmp_path / "table2.csv")
    assert tables.wide_rates(again) is not None and "halving" in tables.rates_title(again)
    for path in paths:
        pd.read_csv(path, dtype=str).assign(rates_tried="1").to_csv(path, index=False)
    tables.write_table("table2", paths, tmp_path / "table2.csv")
    assert "validation" not in (tmp_path / "table2.md").read_text()
