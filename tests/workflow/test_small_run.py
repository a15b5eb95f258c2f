"""The demo's whole graph, smaller: run once, then asked what it would run again, and why."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import copy_repository, jobs, snakemake

CONFIG = ("--configfile", "config/demo.yaml", "tests/workflow/tiny.yaml")
RESULTS = ("table1.csv", "table1.md", "table1.tex", "teachers.csv", "significance.csv", "table2.csv", "report.html")
TABLES = ("table1", "teachers", "significance", "table2", "report")


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Path:
    """A copy of the repository in which the small run has been run."""
    folder = copy_repository(tmp_path_factory.mktemp("run") / "framekd")
    run = snakemake(folder, "--cores", "2", "all", *CONFIG)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rerun(folder: Path, difference: str) -> dict[str, int]:
    """Jobs that a difference in the configuration would run again; seeds' names are left out of the rules'."""
    path = folder / "difference.yaml"
    path.write_text(difference)
    planned = jobs(snakemake(folder, "-n", "all", *CONFIG, str(path)))
    return {rule.split("_seed")[0]: n for rule, n in planned.items() if rule != "all"}


def test_every_result_is_there_and_every_cell_is_filled(done):
    out = done / "results/tiny"
    assert all((out / name).stat().st_size > 0 for name in RESULTS)
    table1, table2 = rows(out / "table1.csv"), rows(out / "table2.csv")
    assert {(r["setting"], r["model"]) for r in table1} >= {
        (setting, model)
        for setting in ("li_et_al", "proposed", "without_kd", "without_rnn", "without_step2")
        for model in ("ATST-F", "fPaSST")
    }
    assert len(table2) == 2 * 3 * 2 * 3
    for row in (*table1, *table2):
        assert 0 <= float(row["mean"]) <= 100 and int(row["n"]) >= 2 and row["std"] != "", row


def test_a_second_run_has_nothing_to_do(done):
    assert jobs(snakemake(done, "-n", "all", *CONFIG)) == {}


def test_clips_that_are_missing_or_broken_are_recorded_and_not_fatal(done):
    states = {r["state"] for r in _tsv(done / "results/tiny/data/coverage.tsv")}
    assert {"ok", "gone"} < states


def _tsv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (
            "student: {recipe: {learning_rate: 0.0005}}",
            {"student": 6, "evaluate_students": 3, "downstream": 6, **dict.fromkeys(TABLES, 1)} | {"teachers": 0},
        ),
        (
            "settings: {li_et_al: {student: {recipe: {momentum: 0.8}}}}",
            {"student": 2, "evaluate_students": 1, "table1": 1, "significance": 1, "report": 1},
        ),
        (
            "teacher: {recipe: {epochs: 2}}",
            {"teacher": 6, "ensemble": 3, "evaluate_teachers": 3, "student": 6, "evaluate_students": 3, "downstream": 6}
            | dict.fromkeys(TABLES, 1),
        ),
        (
            "evaluation: {median_seconds: 0.36}",
            {
                "evaluate_students": 4,
                "evaluate_teachers": 3,
                "table1": 1,
                "teachers": 1,
                "significance": 1,
                "report": 1,
            },
        ),
        ("evaluation: {alpha: 0.1}", {"significance": 1, "report": 1}),
        ("student: {recipe: {learning_rate: 0.0020}}", {}),
        ("resources: {student: {mem_mb: 2600, gpu: 4}}", {}),
        ("tracking: {tensorboard: true, wandb: sounds}", {}),
    ],
)
def test_a_change_reruns_what_uses_it_and_what_follows(done, difference, expected):
    found = rerun(done, difference)
    found.pop("report", None), (expected := dict(expected)).pop("report", None)
    assert found == {rule: n for rule, n in expected.items() if n}


def test_the_ensemble_is_the_mean_of_its_teachers(done):
    from framekd.checkpoints import load_checkpoint
    from framekd.store import Store

    out = done / "results/tiny"
    store = Store(sorted((out / "data/store").glob("*.h5")))
    with h5py.File(out / "ensembles/proposed.h5") as file:
        clips, found = [name.decode() for name in file["clip_ids"][:3]], file["strong_logits"][:3].astype(np.float32)
    import torch

    wave = np.stack([_ten_seconds(store[store.index(clip)]) for clip in clips])
    total = np.zeros_like(found)
    teachers = sorted((out / "teachers/proposed").glob("*/seed*"))
    assert len(teachers) == 4
    with torch.no_grad():
        for directory in teachers:
            model, _ = load_checkpoint(directory)
            total += model(model.frontend(torch.from_numpy(wave)))[0].numpy()
    np.testing.assert_allclose(found, total / 4, atol=2e-3, rtol=2e-3)


def _ten_seconds(samples: np.ndarray) -> np.ndarray:
    wave = np.zeros(160_000, np.float32)
    wave[: len(samples)] = samples[:160_000] / 32768
    return wave


def test_the_same_jobs_again_give_the_same_bytes(done):
    """Last in this file, since it makes what follows from these jobs out of date."""
    out = done / "results/tiny"
    weights = out / "students/proposed/fPaSST/seed1/model.safetensors"
    table = out / "evaluation/students/proposed.csv"
    before = weights.read_bytes(), table.read_bytes()
    weights.unlink(), table.unlink()
    names = [str(path.relative_to(done)) for path in (weights, table)]
    again = snakemake(done, "--cores", "2", *names, *CONFIG)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert (weights.read_bytes(), table.read_bytes()) == before
