"""framekd explain: the job that made a result, what differs, and what has changed since."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from framekd import explain, versions
from framekd.cli import main
from framekd.config import UserError, load, load_files
from framekd.graph import Pack
from framekd.pipeline import job_log
from framekd.plan import Plan

MODELS = ("BEATs", "M2D")
TEACHER, START = "results/teachers/proposed/BEATs/seed1", "results/checkpoints/step2/BEATs"


def run(name, job, inputs=(), outputs=()):
    """Do what Snakemake and a script do: write the outputs inside `job_log`, which leaves the record."""
    log = Path("results/logs", f"{name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    given = SimpleNamespace(
        rule=name.split("/")[0],
        log=[str(log)],
        resources={},
        threads=1,
        params=SimpleNamespace(job=job.model_dump(mode="json", by_alias=True)),
        input=list(inputs),
        output=list(outputs),
    )
    with job_log(given):
        for path in map(Path, outputs):
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"seed": 1, "hours": 2.5, "device": "cpu", "processes": 1, "start": START}
            path.write_text(json.dumps({"provenance": about}) if path.name == "spec.json" else "x")


def of(folder):
    return [f"{folder}/model.safetensors", f"{folder}/spec.json"]


def configured(**values):
    return load({"models": list(MODELS), "seeds": [1], **values})


def train(config, setting="proposed"):
    plan, pack = Plan(config), Pack("", ("BEATs",), (1,))
    folder = f"results/teachers/{setting}/BEATs/seed1"
    start = f"results/checkpoints/{plan.settings[setting].start}/BEATs"
    job = plan.train_job(SimpleNamespace(setting=setting), "teachers", pack)
    run(f"teachers/{setting}/BEATs/seed1", job, [*of(start), "data/coverage/strong.tsv"], of(folder))


def step2(config):
    run("step2/BEATs", Plan(config).step2_job(None, Pack("", ("BEATs",))), [], of(START))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A teacher, its Step 2 checkpoint and the count of its clips, made with a configuration that has one change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    config = configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 6}})
    run("data/gate/strong", Plan(config).gate_job(SimpleNamespace(group="strong")), [], ["data/coverage/strong.tsv"])
    table = "split\tclass\tstate\tclips\nstrong_train\t\twanted\t10\nstrong_train\t\tok\t8\nstrong_train\tBell\tok\t3\n"
    Path("data/coverage").mkdir(parents=True, exist_ok=True)
    Path("data/coverage/strong.tsv").write_text(table)
    step2(config)
    train(config)
    return config


def test_an_unchanged_result_has_nothing_to_rerun(config):
    found = explain.explain(TEACHER, config)
    assert (found.record.name, found.from_current, found.changes) == ("teachers/proposed/BEATs/seed1", [], [])
    assert list(found.parents) == ["data/gate/strong", "step2/BEATs"]
    assert [(c.split, c.ok, c.wanted) for c in found.coverage] == [("strong_train", 8, 10)]
    assert [(t.seed, t.hours, t.start) for t in found.trainings] == [(1, 2.5, START)]
    assert found.record.version == found.version_now == versions.VERSIONS["train"]


def test_a_key_that_differs_is_shown_against_the_configuration_and_the_paper(config):
    now = configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 12}})
    found = explain.explain(TEACHER, now)
    assert list(map(str, found.from_current)) == ["recipes.BEATs.epochs: 6 -> 12"] == found.changes
    assert "recipes.BEATs.epochs: 6 -> 30" in map(str, found.from_paper)


def test_a_key_that_cannot_change_the_result_is_no_change(config):
    now = configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 6}}, tracking={"tensorboard": True})
    found = explain.explain(TEACHER, now)
    assert [(one.key, one.inert) for one in found.from_current] == [("tracking.tensorboard", True)]
    assert found.changes == []


def test_a_raised_code_version_is_a_change_of_the_result_and_of_its_parents(config, monkeypatch):
    before = versions.VERSIONS["train"]
    monkeypatch.setitem(versions.VERSIONS, "train", before + 1)
    found = explain.explain(TEACHER, config)
    assert (found.record.version, found.version_now, found.from_current) == (before, before + 1, [])
    sentence = f"code version: {before} -> {before + 1}"
    assert found.changes == [sentence, f"step2/BEATs: {sentence}"]


def test_a_parent_that_ran_again_is_a_change(config):
    time.sleep(0.01)
    step2(config)
    assert explain.explain(TEACHER, config).changes == ["step2/BEATs has run again since"]


def test_a_parent_with_another_configuration_is_a_change(config):
    now = configured(step2={"train": ["BEATs"], "recipe": {"epochs": 3}}, teacher={"recipe": {"epochs": 6}})
    (change,) = explain.explain(TEACHER, now).changes
    assert change.startswith("step2/BEATs: recipes.BEATs.epochs: ") and change.endswith(" -> 3")


def test_another_starting_checkpoint_is_a_change(config):
    settings = {"proposed": {"start": "step1"}}
    now = configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 6}}, settings=settings)
    found = explain.explain(TEACHER, now).changes
    assert f"it no longer reads {START}/spec.json" in found
    assert "it now reads results/checkpoints/step1/BEATs/spec.json" in found


def test_a_new_count_of_clips_alone_is_no_change(config):
    time.sleep(0.01)
    run("data/gate/strong", Plan(config).gate_job(SimpleNamespace(group="strong")), [], ["data/coverage/strong.tsv"])
    assert explain.explain(TEACHER, config).changes == []


def test_a_result_written_by_hand_and_one_removed_are_named(config):
    path = Path(TEACHER) / "model.safetensors"
    os.utime(path, (time.time() + 3600,) * 2)
    assert "after its job ended" in explain.explain(TEACHER, config).notes[0]
    path.unlink()
    assert "no longer there" in explain.explain(str(path), config).notes[0]


def test_a_result_without_record_is_one_sentence(config, capsys):
    Path("results/other.csv").write_text("x")
    with pytest.raises(UserError, match=r"other\.csv: no job has left a record of it; make it with `snakemake"):
        explain.explain("results/other.csv", config)
    assert main(["explain", "results/none.csv"]) == 1
    assert "results/none.csv: no such file; make it with" in capsys.readouterr().err


def test_a_damaged_record_is_named(config):
    Path("results/logs/step2/BEATs.json").write_text("{")
    with pytest.raises(UserError, match="not the record of a job"):
        explain.explain(TEACHER, config)


def test_the_newest_record_of_a_file_counts(config):
    time.sleep(0.01)
    job = Plan(config).train_job(SimpleNamespace(setting="proposed"), "teachers", Pack("pack1", MODELS, (1,)))
    run("teachers/proposed/pack1/seed1", job, of(START), of(TEACHER))
    assert explain.explain(TEACHER, config).record.name == "teachers/proposed/pack1/seed1"


def test_two_results_differ_in_their_numbers_and_ancestors(config):
    train(configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 6}}), "without_rnn")
    train(configured(step2={"train": ["BEATs"]}, teacher={"recipe": {"epochs": 6}}), "without_step2")
    found = explain.explain_pair(TEACHER, "results/teachers/without_rnn/BEATs/seed1", config)
    assert list(map(str, found.own)) == ['sequence_model: "bigru" -> null']
    assert (found.ancestors, found.only_first, found.only_second) == ({}, [], [])
    found = explain.explain_pair(TEACHER, "results/teachers/without_step2/BEATs/seed1", config)
    assert (found.own, found.only_first) == ([], ["step2/BEATs"])
    assert "ancestors of the first only: step2/BEATs" in explain.pair_text(found)


def test_a_difference_that_models_share_is_one():
    then = {"recipes": {name: {"epochs": 6, "betas": [0.9, 0.999]} for name in MODELS}, "version": 1}
    now = {"recipes": {name: {"epochs": 12, "betas": [0.8, 0.999]} for name in MODELS}, "version": 2}
    found = list(map(str, explain.differences(then, now)))
    assert found == ["recipes.{BEATs,M2D}.betas.0: 0.9 -> 0.8", "recipes.{BEATs,M2D}.epochs: 6 -> 12"]
    assert explain.differences({"rate": 1}, {"rate": 1.0}) == []
    assert str(explain.differences({"a": {}}, {"a": {"b": None}})[0]) == "a.b: absent -> null"


@pytest.mark.parametrize("file", ["demo.yaml", "config.yaml"])
def test_the_name_of_every_job_is_understood(file):
    """The names are those of the benchmarks, which every rule calls as it calls its log."""
    plan = Plan(load_files(Path(__file__).parents[2] / "config" / file))
    names = ["report"]
    for _, path in plan.benchmarks():
        names.append(path.removeprefix(f"{plan.results}/benchmarks/").removesuffix(".tsv"))
    for name in names:
        models = plan.step2_external if "external" in name else plan.step2_trained
        job = {"models": models[:1], "seeds": [1]}
        record = explain.Record(name, Path(), "", job, (), (), 0, 0)
        assert explain.job_of(record, plan) is not None, name
    assert len(names) > 30


def test_a_score_is_explained_with_the_trainings_of_its_job():
    config = configured()
    plan, pack = Plan(config), Pack("", MODELS, (1,))
    name = "evaluation/students/proposed/pack1/seed1"
    job = plan.evaluate_job(SimpleNamespace(stage="students", setting="proposed"), pack)
    weights = [path for paths in plan.models("students", "proposed").values() for path in paths]
    record = explain.Record(name, Path(), "", job.model_dump(mode="json"), (), (), 0, 0)
    assert explain.job_of(record, plan) == job
    assert explain.reads(record, plan) == set(weights)
    together = plan.evaluate_job(SimpleNamespace(setting="proposed"))
    record = explain.Record("evaluation/ensembles/proposed", Path(), "", together.model_dump(mode="json"), (), (), 0, 0)
    assert explain.job_of(record, plan) == together
    assert explain.reads(record, plan) == {path.replace("students", "teachers") for path in weights}


def test_the_counts_of_a_dry_run_are_read():
    rows = ["job            count", "-------------  -------", "all  1", "teacher_seed1  15", "total  16"]
    table = "\n".join(rows)
    text = f"Building DAG\nJob stats:\n{table}\n\nx  3\n"
    assert explain.job_counts(text) == {"all": 1, "teacher_seed1": 15}
    assert explain.job_counts("Nothing to be done") == {}


def test_without_a_snakefile_the_reruns_are_unknown(config, capsys):
    Path("config").mkdir()
    Path("config/config.yaml").write_text("teacher: {recipe: {epochs: 6}}\n")
    assert main(["explain", TEACHER, "--deep"]) == 0
    out = capsys.readouterr().out
    assert "reruns: unknown (no Snakefile here" in out and "seed 1, 2.5 h on 1 cpu" in out
    assert main(["explain", TEACHER, TEACHER]) == 0 and "configuration: no difference" in capsys.readouterr().out
    assert main(["explain", TEACHER, TEACHER, TEACHER]) == 1


def test_many_jobs_of_one_folder_are_one_line(config):
    stores = [f"data/store/{shard:04d}.h5" for shard in range(8)]
    for shard, store in enumerate(stores):
        wildcards = SimpleNamespace(group="strong", shard=shard)
        run(f"acquire/strong/{shard:04d}", Plan(config).acquire_job(wildcards), [], [store])
    gate = Plan(config).gate_job(SimpleNamespace(group="strong"))
    run("data/gate/strong", gate, stores, ["data/coverage/strong.tsv"])
    out = explain.text(explain.explain("data/coverage/strong.tsv", config))
    assert "    acquire/strong: 8 jobs, the last " in out and "acquire/strong/0003" not in out
