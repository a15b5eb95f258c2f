"""The search of a learning rate: what is chosen, what judges, and real trainings at a silly and a sane rate."""

import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
from small_audioset import train_job, write_audioset, write_step1, write_weak

from framekd.checkpoints import load_checkpoint
from framekd.config import Config, Search, UserError, WeakRecipe, WeakSearch, load
from framekd.jobs import ChooseJob, EnsembleJob, SearchJob, Step2Job
from framekd.pipeline import search as stage
from framekd.pipeline.ensemble import average
from framekd.pipeline.search import choose, choose_rate, try_rate
from framekd.pipeline.train import split, strong_clips, train_strong, train_weak, weak_clips
from framekd.pipeline.watch import weak_metrics
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
        ("map", {1e-4: 0.1, 3e-4: 0.3, 1e-3: 0.2}, 3e-4),
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
def inputs(tmp_path_factory):
    """The inputs of a training on a small AudioSet, from Step 1 weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audioset")
    yield {**write_audioset(folder / "data"), "weights": [write_step1(folder)]}
    torch.set_num_threads(threads)


def search_job(rate, *, soft=False, recipe=None, **search):
    train = train_job(learning_rate=rate, **{"epochs": 6, **(recipe or {})})
    about = Search(**{"grid": [rate], "share": 0.25, **search})
    return SearchJob(version=1, train=train, model="tiny", search=about, median_seconds=0.2, batch_size=8)


def tried(inputs, folder, rate, **search):
    out = folder / str(rate) / "result.json"
    try_rate(search_job(rate, **search), inputs=inputs, out=str(out))
    return out


@pytest.mark.parametrize("criterion", ["psds1", "loss"])
def test_a_useless_rate_loses_against_a_good_one_and_training_uses_the_choice(inputs, tmp_path, criterion):
    paths = [tried(inputs, tmp_path, rate, criterion=criterion) for rate in (1e-12, 3e-3)]
    useless, good = (json.loads(path.read_text()) for path in paths)
    worse = useless["value"] < good["value"] - 0.05 if criterion == "psds1" else useless["value"] > good["value"] * 1.2
    assert worse, (useless["value"], good["value"])
    assert good["clips"] == 6 and len([line for line in good["history"] if "train/loss" in line]) == 30
    choice, figures = tmp_path / "tiny.json", tmp_path / "candidates.json"
    job = ChooseJob(version=1, search=Search(criterion=criterion))
    choose_rate(job, results=list(map(str, paths)), rate=str(choice), candidates=str(figures))
    assert json.loads(choice.read_text()) == {"learning_rate": 3e-3}
    written = json.loads(figures.read_text())
    assert written["learning_rate"] == 3e-3 and "6 training clips held out, seed 1" in written["chosen_by"]
    assert [c["learning_rate"] for c in written["candidates"]] == [1e-12, 3e-3]

    weights = tmp_path / "seed1" / "model.safetensors"
    chosen = {**inputs, "rates": [str(choice)]}
    train_strong(train_job(learning_rate="search", epochs=1), inputs=chosen, weights=[str(weights)])
    lines = [json.loads(line) for line in (weights.parent / "history.jsonl").read_text().splitlines()]
    assert lines[2]["train/lr"] == 3e-3  # the peak, after two steps of warm-up
    assert json.loads((weights.parent / "spec.json").read_text())["provenance"]["recipe"]["learning_rate"] == 3e-3


def test_step_2_searches_too_and_training_uses_the_choice(inputs, tmp_path):
    weak = {**write_weak(tmp_path), "weights": inputs["weights"]}
    recipe = {"epochs": 5, "epoch_clips": 24, "batch_size": 4, "warmup_steps": 2, "head_init": "prior"}
    search, paths = WeakSearch(grid=[1e-12, 3e-3], share=0.25), []
    for rate in search.grid:
        train = Step2Job(version=1, recipes={"tiny": WeakRecipe(**recipe, learning_rate=rate)}, seed=search.seed)
        job = SearchJob(version=1, train=train, model="tiny", search=search, median_seconds=None, batch_size=8)
        paths.append(str(tmp_path / str(rate) / "result.json"))
        try_rate(job, inputs=weak, out=paths[-1])
    useless, good = (json.loads(Path(path).read_text()) for path in paths)
    assert useless["value"] < good["value"] - 0.05 and good["clips"] == 8, (useless["value"], good["value"])
    choice, figures = tmp_path / "tiny.json", tmp_path / "candidates.json"
    choose_rate(ChooseJob(version=1, search=search), results=paths, rate=str(choice), candidates=str(figures))
    assert json.loads(figures.read_text())["chosen_by"].startswith("highest map on 8 training clips held out, seed 1")

    weights = tmp_path / "step2" / "model.safetensors"
    last = Step2Job(version=1, recipes={"tiny": WeakRecipe(**{**recipe, "epochs": 1}, learning_rate="search")}, seed=1)
    train_weak(last, inputs={**weak, "rates": [str(choice)]}, weights=[str(weights)])
    model, spec = load_checkpoint(weights.parent)
    assert spec["provenance"]["recipe"]["learning_rate"] == 3e-3
    by_loss = job.model_copy(update={"search": WeakSearch(criterion="loss")})
    clips = weak_clips(weak)
    assert stage.judge(model, clips, by_loss) == pytest.approx(weak_metrics(model, clips)["watch/loss"], rel=1e-5)


def test_a_rate_that_diverges_is_worst_and_no_failure(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("framekd.config.recipe.LARGEST_RATE", 1e31)
    found = json.loads(tried(inputs, tmp_path, 1e30).read_text())
    assert found["value"] is None and found["diverged"]
    assert not (tmp_path / "1e+30" / ".resume").exists()


def test_distilled_students_are_judged_on_labels_alone(inputs, tmp_path):
    """The ensemble says that nothing is ever active: a student that learns from it alone is judged by the labels."""
    teacher, ensemble = tmp_path / "M" / "seed1" / "model.safetensors", str(tmp_path / "ensemble.h5")
    train_strong(train_job(epochs=1), inputs=inputs, weights=[str(teacher)])
    average(EnsembleJob(version=1, batch_size=8), inputs={**inputs, "weights": [str(teacher)]}, out=ensemble)
    with h5py.File(ensemble, "r+") as file:
        file["strong_logits"][:] = -20.0
    found = {}
    for name, weight in (("labels", 0.0), ("distilled", 1.0)):
        recipe = {"distillation_weight": weight, "validation_share": 0.2, "validate_epochs": 3}
        job = search_job(3e-3, recipe=recipe, criterion="loss")
        given = {**inputs, "soft_labels": [ensemble] if weight else []}
        try_rate(job, inputs=given, out=str(tmp_path / name / "result.json"))
        found[name] = json.loads((tmp_path / name / "result.json").read_text())
    validations = [[line["val/loss"] for line in run["history"] if "val/loss" in line] for run in found.values()]
    trained = [[line["train/loss"] for line in run["history"] if "train/loss" in line] for run in found.values()]
    assert [len(lines) for lines in validations] == [2, 2]
    # On soft labels the student is perfect, on labels worse than the one that has seen them, and worse at the end.
    assert trained[1][-1] < 0.1 * trained[1][0] and validations[1][-1] > validations[0][-1] * 1.5
    assert found["distilled"]["value"] > found["labels"]["value"] * 1.5


def test_judging_clips_are_held_out_and_always_the_same(inputs, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stage, "judge", lambda model, clips, job: seen.append(clips.ids) or 0.5)
    monkeypatch.setattr(stage, "train_one", lambda *given, finish, **_: finish(None, stage.Fit(given[2].ids)))
    for i, seed in enumerate((1, 1, 2)):
        tried(inputs, tmp_path / str(i), 1e-3, seed=seed)
    trained = json.loads((tmp_path / "2" / "0.001" / "result.json").read_text())["history"]
    every = strong_clips(inputs)
    assert seen[0] == seen[1] != seen[2] and set(seen[2]) | set(trained) == set(every.ids)
    assert not set(seen[2]) & set(trained) and len(seen[0]) == 6
    # not the clips that the recipe's own validation holds out
    assert seen[0] != split(every, 0.25, seed=1)[1].ids
    tried(inputs, tmp_path, 1e-3, judged_on="eval")
    assert len(seen[3]) == 8 and not set(seen[3]) & set(every.ids)


# ----------------------------------------------------------------------------------------- configuration and plan


def test_the_papers_grid_is_the_default_and_nothing_is_searched():
    config = Config()
    assert config.teacher.search.grid == [7e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3]
    assert Plan(config).searches("teachers") == Plan(config).searches("students") == []
    assert Plan(config).rates("students", "proposed", ["BEATs"]) == []


def test_the_file_name_of_a_rate_is_the_rate():
    values = {"recipe": {"learning_rate": "search"}, "search": {"grid": [7e-5, 1.23456789e-4]}}
    plan = Plan(load({"teacher": values}))
    rates = [path.split("/")[-2] for path in plan.candidates("teachers", "proposed", "M2D")]
    wildcards = [SimpleNamespace(setting="proposed", model="M2D", rate=rate) for rate in rates]
    found = [plan.search_job(one, "teachers").train.recipes["M2D"].learning_rate for one in wildcards]
    assert found == [7e-5, 1.23456789e-4]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student": {"recipe": {"learning_rate": "serch"}}}, ["student.recipe.learning_rate", "`search`", "'serch'"]),
        ({"student": {"recipe": {"learning_rate": {"BEATs": -1}}}}, ["student.recipe.learning_rate", "-1"]),
        ({"teacher": {"search": {"grid": []}}}, ["teacher.search", "write grid: [1.0e-4, 3.0e-4]"]),
        ({"step2": {"search": {"judged_on": "eval"}}}, ["step2.search.judged_on", "grid, seed, share, criterion"]),
        ({"step2": {"search": {"criterion": "psds1"}}}, ["step2.search.criterion", "'map' or 'loss'"]),
        ({"step2": {"search": {"grid": [0.0]}}}, ["step2.search", "write grid: [1.0e-4, 3.0e-4]"]),
        ({"recipe": {"learning_rate": {"BEATs": "search"}}}, ["recipe.learning_rate", "write a number"]),
    ],
)
def test_mistakes_are_told(values, words):
    with pytest.raises(UserError) as caught:
        load(values)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
