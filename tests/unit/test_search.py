"""The search of a learning rate: what is chosen, what judges, and real trainings at a silly and a sane rate."""

import json

import pytest
import torch
from small_audioset import block, write_audioset, write_step1

from framekd.config import Config, UserError, load
from framekd.pipeline import search as stage
from framekd.pipeline.search import choose, choose_rate, try_rate
from framekd.pipeline.strong import Given, average, split, train, training_clips
from framekd.plan import Plan


def result(rate, value):
    return {"learning_rate": rate, "value": value, "diverged": None if value is not None else "the loss is nan"}


@pytest.mark.parametrize(
    ("criterion", "values", "expected"),
    [
        ("psds1", {1e-4: 0.1, 3e-4: 0.3, 1e-3: 0.2}, 3e-4),
        ("loss", {1e-4: 0.1, 3e-4: 0.3, 1e-3: 0.2}, 1e-4),
        ("psds1", {1e-3: 0.3, 1e-4: 0.3, 3e-4: 0.3}, 1e-4),  # ties: the lower rate
        ("loss", {1e-3: 0.3, 1e-4: 0.3}, 1e-4),
        ("psds1", {1e-4: 0.0, 1e-3: None}, 1e-4),  # diverged is worse than nothing found
        ("loss", {1e-4: None, 1e-3: 99.0}, 1e-3),
    ],
)
def test_the_best_is_chosen(criterion, values, expected):
    found = choose([result(*pair) for pair in values.items()], criterion=criterion)
    assert found["learning_rate"] == expected


def test_a_search_in_which_everything_diverges_is_told():
    with pytest.raises(UserError, match=r"no rate of the search .*\(0\.1, 1\); write lower ones into search: grid"):
        choose([result(0.1, None), result(1.0, None)], criterion="loss")


# ------------------------------------------------------------------------------------------------- real trainings


@pytest.fixture(scope="module")
def audioset(tmp_path_factory):
    """(data folder, Step 1 weights) of a small AudioSet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audioset")
    write_audioset(folder / "data")
    yield str(folder / "data"), write_step1(folder)
    torch.set_num_threads(threads)


def job(rate, **search):
    about = {"seed": 1, "share": 0.25, "judged_on": "train", "criterion": "psds1", "median_seconds": 0.2}
    return {**block(learning_rate=rate, epochs=6), "search": {**about, "batch_size": 8, **search}}


def tried(audioset, folder, rate, **search):
    data, start = audioset
    out = folder / str(rate) / "result.json"
    try_rate(Given(job(rate, **search), start, data), out=str(out))
    return out


@pytest.mark.parametrize("criterion", ["psds1", "loss"])
def test_a_silly_rate_loses_against_a_sane_one_and_training_uses_the_choice(audioset, tmp_path, criterion):
    paths = [tried(audioset, tmp_path, rate, criterion=criterion) for rate in (1e-12, 3e-3)]
    silly, sane = (json.loads(path.read_text()) for path in paths)
    assert (silly["value"] < sane["value"] - 0.05) if criterion == "psds1" else (silly["value"] > sane["value"])
    assert sane["clips"] == 6 and len([line for line in sane["history"] if "train/loss" in line]) == 30
    choice, figures = tmp_path / "tiny.json", tmp_path / "candidates.json"
    about = {"criterion": criterion, "judged_on": "train", "seed": 1}
    choose_rate(map(str, paths), about, out=str(choice), candidates=str(figures))
    assert json.loads(choice.read_text()) == {"learning_rate": 3e-3}
    written = json.loads(figures.read_text())
    assert written["learning_rate"] == 3e-3 and "6 training clips held out, seed 1" in written["chosen_by"]
    assert [c["learning_rate"] for c in written["candidates"]] == [1e-12, 3e-3]

    data, start = audioset
    weights = tmp_path / "seed1" / "model.safetensors"
    given = block(learning_rate="search", epochs=1)
    train(Given(given, start, data), {1: str(weights)}, rate=str(choice))
    lines = [json.loads(line) for line in (weights.parent / "history.jsonl").read_text().splitlines()]
    assert lines[2]["train/lr"] == 3e-3  # the peak, after two steps of warm-up
    assert json.loads((weights.parent / "spec.json").read_text())["provenance"]["recipe"]["learning_rate"] == 3e-3


def test_a_rate_that_diverges_is_worst_and_no_failure(audioset, tmp_path):
    found = json.loads(tried(audioset, tmp_path, 1e30).read_text())
    assert found["value"] is None and found["diverged"]
    assert not (tmp_path / "1e+30" / ".resume").exists()


def test_distilled_students_are_judged_on_labels_alone(audioset, tmp_path):
    data, start = audioset
    teacher, ensemble = tmp_path / "M" / "seed1" / "model.safetensors", str(tmp_path / "ensemble.h5")
    train(Given(block(epochs=1), start, data), {1: str(teacher)})
    average([str(teacher)], data=data, batch_size=8, out=ensemble)
    found = {}
    for name, soft in (("labels", None), ("distilled", ensemble)):
        given = job(1e-3, criterion="loss")
        given["recipe"] |= {"distillation_weight": 0.9 if soft else 0.0, "validation_share": 0.2, "validate_epochs": 3}
        try_rate(Given(given, start, data, ensemble=soft), out=str(tmp_path / name / "result.json"))
        found[name] = json.loads((tmp_path / name / "result.json").read_text())
    validations = [[line for line in run["history"] if "val/loss" in line] for run in found.values()]
    assert [len(lines) for lines in validations] == [2, 2] and found["labels"]["value"] != found["distilled"]["value"]
    # before much is learnt, losses on labels differ little, whatever is trained on
    assert found["labels"]["value"] == pytest.approx(found["distilled"]["value"], rel=0.5)


def test_judges_are_held_out_and_always_the_same(audioset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stage, "judge", lambda model, clips, search: seen.append(clips.ids) or 0.5)
    monkeypatch.setattr(stage, "train_one", lambda given, clips, *, finish, **_: finish(None, stage.Fit(clips.ids)))
    for seed in (1, 1, 2):
        tried(audioset, tmp_path, 1e-3, seed=seed)
    trained = json.loads((tmp_path / "0.001" / "result.json").read_text())["history"]
    every = training_clips(audioset[0])
    assert seen[0] == seen[1] != seen[2] and set(seen[2]) | set(trained) == set(every.ids)
    assert not set(seen[2]) & set(trained) and len(seen[0]) == 6
    # not the clips that the recipe's own validation holds out
    assert seen[0] != split(every, 0.25, seed=1)[1].ids
    tried(audioset, tmp_path, 1e-3, judged_on="eval")
    assert len(seen[3]) == 8 and not set(seen[3]) & set(every.ids)


# ----------------------------------------------------------------------------------------- configuration and plan


def test_the_papers_grid_is_the_default_and_nothing_is_searched():
    config = Config()
    assert config.teacher.search.grid == [7e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3]
    assert Plan(config).searches("teachers") == Plan(config).searches("students") == []
    assert Plan(config).chosen_rate("students", "proposed", "BEATs") == []


def test_the_file_name_of_a_rate_is_the_rate():
    values = {"recipe": {"learning_rate": "search"}, "search": {"grid": [7e-5, 1.23456789e-4]}}
    plan = Plan(load({"teacher": values}))
    rates = [path.split("/")[-2] for path in plan.search_results("teachers", "proposed", "M2D")]
    assert [plan.search("teachers", "proposed", "M2D", r)["recipe"]["learning_rate"] for r in rates] == [
        7e-5, 1.23456789e-4,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student": {"recipe": {"learning_rate": "serch"}}}, ["student.recipe.learning_rate", "`search`", "'serch'"]),
        ({"student": {"recipe": {"learning_rate": {"BEATs": -1}}}}, ["student.recipe.learning_rate", "-1"]),
        ({"teacher": {"search": {"grid": []}}}, ["teacher.search", "write grid: [1.0e-4, 3.0e-4]"]),
        ({"step2": {"recipe": {"learning_rate": "search"}}}, ["step2.recipe.learning_rate", "write a number"]),
        (
            {"downstream": {"DC16-T2": {"finetune": {"learning_rate": {"BEATs": "search"}}}}},
            ["downstream.DC16-T2.finetune.learning_rate", "write a number"],
        ),
    ],
)
def test_mistakes_are_told(values, words):
    with pytest.raises(UserError) as caught:
        load(values)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
