"""The demo's whole graph, smaller: run once, then asked what it would run again, and why."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import copy_repository, jobs, snakemake
from filelock import FileLock

from framekd.verify import verify

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


def rerun(folder: Path, difference: str = "") -> dict[str, int]:
    """Jobs that would run again, by rule without its pack; a difference is laid over the configuration."""
    path = folder / "difference.yaml"
    path.write_text(difference or "{}")
    planned = jobs(snakemake(folder, "-n", "all", *CONFIG, str(path)))
    found: Counter[str] = Counter()
    for rule, n in planned.items():
        found[re.sub(r"_(pack|seed).*", "", rule)] += n
    return {rule: n for rule, n in found.items() if rule != "all"}


@contextmanager
def altered(path: Path, change=lambda content: content + b"\n"):
    """`path` with another content and a new time; both are put back."""
    content, state = path.read_bytes(), path.stat()
    path.write_bytes(change(content))
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_every_result_is_there_and_every_cell_is_filled(done):
    out = done / "results/tiny"
    assert all((out / name).stat().st_size > 0 for name in RESULTS)
    table1, table2 = rows(out / "table1.csv"), rows(out / "table2.csv")
    assert {(r["setting"], r["model"]) for r in table1} >= {
        (setting, model)
        for setting in ("li_et_al", "proposed", "without_kd", "without_rnn", "without_step2")
        for model in ("ATST-F", "fPaSST")
    }
    assert len(table2) == (2 + 1) * 3 * 2 * 3  # and their average
    for row in (*table1, *table2):
        assert 0 <= float(row["mean"]) <= 100 and int(row["n"]) >= 2 and row["std"] != "", row
    for row in table2:
        if row["model"] != "average":
            tried = {"frozen": "3", "finetune": "2"}[row["mode"]] if row["task"] == "DC16-T2" else "1"
            assert float(row["learning_rate"]) > 0 and row["rates_tried"] == tried, row
    assert "chosen among" in (out / "table2.md").read_text() and 'id="rates"' in (out / "report.html").read_text()
    step2 = rows(out / "step2.csv")
    assert [(r["model"], r["source"]) for r in step2] == [(m, "trained here") for m in ("ATST-F", "fPaSST")]
    assert all(0 < float(r["map"]) <= 100 and int(r["clips"]) > 0 and int(r["classes"]) > 0 for r in step2)
    # Barely trained models find little, but not nothing, and not all the same.
    found = [float(row["mean"]) for row in (*table1, *table2)]
    assert sum(value > 0 for value in found) >= 5 and len(set(found)) >= 5, found


def test_a_second_run_has_nothing_to_do(done):
    assert jobs(snakemake(done, "-n", "all", *CONFIG)) == {}


def test_clips_that_are_missing_or_broken_are_recorded_and_not_fatal(done):
    gates = [done / f"results/tiny/data/coverage/{group}.tsv" for group in ("strong", "eval", "weak")]
    states = {r["state"] for path in gates for r in _tsv(path)}
    assert {"ok", "gone"} < states


def _tsv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


TABLE1 = {"table1": 1, "significance": 1}
ALL_TABLES = {**TABLE1, "teachers": 1, "table2": 1}
# What follows from teachers, students, Step 2 and new audio, with the jobs of the change itself.
FROM_STUDENTS = {"student": 3, "evaluate": 3, "downstream": 3, **TABLE1, "table2": 1}
FROM_TEACHERS = {
    **{"teacher": 3, "ensemble": 3, "evaluate_ensemble": 3, "student": 3, "evaluate": 6, "downstream": 3},
    **ALL_TABLES,
}
STEP2_SCORES = {"evaluate_step2": 2, "table_step2": 1}
WEAK = {"weak_member": 1, "weak_ensemble": 1}
FROM_STEP2 = {
    **WEAK,
    **{"step2": 1, "teacher": 2, "ensemble": 2, "evaluate_ensemble": 2, "student": 2, "evaluate": 4, "downstream": 6},
    **STEP2_SCORES,
    **ALL_TABLES,
}
TRAININGS = {
    **WEAK,
    **{"step2": 1, "teacher": 3, "ensemble": 3, "evaluate_ensemble": 3, "student": 4, "evaluate": 7, "downstream": 6},
    **STEP2_SCORES,
    **ALL_TABLES,
}


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ("student: {recipe: {learning_rate: 0.0005}}", FROM_STUDENTS),
        ("settings: {li_et_al: {student: {recipe: {momentum: 0.8}}}}", {"student": 1, "evaluate": 1, **TABLE1}),
        ("teacher: {recipe: {epochs: 2}}", FROM_TEACHERS),
        # the teachers of `proposed` are then those of without_rnn, which are scored once
        (
            "teacher: {sequence_model: null}",
            {**FROM_TEACHERS, "teacher": 2, "ensemble": 2, "evaluate_ensemble": 2, "evaluate": 5},
        ),
        ("step2: {recipe: {augment: {mixup: 0.3}}}", FROM_STEP2),
        ("step2: {recipe: {distillation_weight: 0.6}}", {k: v for k, v in FROM_STEP2.items() if k not in WEAK}),
        ("recipe: {clip_gradient: 1.0}", {**TRAININGS, "student": 3, "evaluate": 6, "downstream": 9}),
        ("step1: {seed: 5}", {"step1": 1, **TRAININGS, "downstream": 9}),
        ("sizes: {all: {width: 64}}", {"step1": 1, **TRAININGS, "downstream": 9}),
        (
            "seeds: [1, 3]",
            {k: v for k, v in TRAININGS.items() if "step2" not in k and k not in WEAK} | {"downstream": 3},
        ),
        ("evaluation: {median_seconds: 0.36}", {"evaluate": 7, "evaluate_ensemble": 3, **TABLE1, "teachers": 1}),
        ("evaluation: {batch_size: 10}", {**FROM_TEACHERS, "evaluate": 7, **STEP2_SCORES} | {"teacher": 0}),
        ("evaluation: {alpha: 0.1}", {"significance": 1}),
        ("downstream: {DESED: {frozen: {epochs: 2}}}", {"downstream": 3, "table2": 1}),
        ("downstream: {MAESTRO: {median_seconds: 0.2}}", {"downstream": 3, "table2": 1}),
        ("downstream: {modes: [frozen]}", {"downstream": 9, "table2": 1}),
        ("audioset: {encoding: flac}", {"acquire": 4, "gate": 3, **TRAININGS}),
        ("audioset: {download: {shards: {weak: 2}}}", {"clips": 1, "acquire": 2, "gate": 1, **FROM_STEP2}),
        ("audioset: {min_share: 0.5}", {"gate": 3}),
        ("miniature: {dcase16_files: 6}", {"miniature": 1, "downstream": 3, "table2": 1}),
        ("settings: {without_step2: null}", {**TABLE1, "teachers": 1}),
        # The jobs that score have other inputs then; no training runs again.
        ("seeds_per_job: 1", {"evaluate": 14, **TABLE1, "teachers": 1}),
        # What cannot change a result reruns nothing.
        ("student: {recipe: {learning_rate: 0.0030}}", {}),
        ("resources: {student: {mem_mb: 2600, gpu: 4, threads: 3}}", {}),
        ("tracking: {tensorboard: true, wandb: sounds}", {}),
        ("audioset: {download: {workers: 7}}", {}),
        ("audioset: {download: {pause_seconds: 1, retries: 9, timeout_seconds: 5, max_rate_limits: 9}}", {}),
        ("evaluation: {cross_check: 0}", {}),
    ],
)
def test_a_change_of_the_configuration_reruns_what_uses_it_and_what_follows(done, difference, expected):
    found = rerun(done, difference)
    assert bool(found.pop("report", None)) == bool(expected)  # it shows everything that a run depends on
    assert found == {rule: n for rule, n in expected.items() if n}


NOT_READ_BY_STEP1 = {"clips": 3, "acquire": 4, "gate": 3, **TRAININGS}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("results/tiny/data/labels/audioset_eval_strong.tsv", NOT_READ_BY_STEP1),
        ("results/tiny/data/store/strong/0000.h5", TRAININGS),
        ("results/tiny/data/store/eval/0000.h5", {**FROM_STEP2, "evaluate": 7, "evaluate_ensemble": 3}),
        ("results/tiny/data/store/weak/0000.h5", FROM_STEP2),
        ("results/tiny/data/store/strong/0001.manifest.tsv", {"gate": 2}),  # of AudioSet Weak too
        ("results/tiny/data/store/weak/0000.manifest.tsv", {"gate": 1}),
        (
            "results/tiny/checkpoints/step2/fPaSST/model.safetensors",
            {k: v for k, v in FROM_STEP2.items() if k != "step2" and k not in WEAK} | {"evaluate_step2": 1},
        ),
        ("results/tiny/students/li_et_al/ATST-F/seed1/model.safetensors", {"evaluate": 1, **TABLE1}),
        ("results/tiny/students/proposed/fPaSST/seed2/history.jsonl", {"report": 1}),
        ("results/tiny/students/without_rnn/fPaSST/seed2/spec.json", {"evaluate": 1, **TABLE1}),
        ("results/tiny/evaluation/teachers/proposed/ATST-F/seed1.csv", {"teachers": 1}),
        ("results/tiny/evaluation/ensembles/proposed.csv", {"teachers": 1}),
        ("results/tiny/evaluation/students/proposed/fPaSST/seed2.per_class.csv", {"report": 1}),
        ("config/published/table2.csv", {"table2": 1}),
        ("scripts/train.py", {}),
        ("src/framekd/losses.py", {}),
        ("workflow/rules/train.smk", {}),
    ],
)
def test_a_changed_file_reruns_exactly_what_reads_it(done, file, expected):
    with altered(
        done / file, lambda content: content + (b"# a comment\n" if not file.startswith("results") else b"\n")
    ):
        found = rerun(done)
    assert bool(found.pop("report", None)) == bool(expected)
    assert found == {rule: n for rule, n in expected.items() if n and rule != "report"}


def test_a_file_that_was_only_touched_reruns_nothing(done):
    for file in (
        "results/tiny/data/labels/audioset_train_strong.tsv",
        "results/tiny/evaluation/ensembles/proposed.csv",
    ):
        (done / file).touch()
    assert rerun(done) == {}


def test_a_raised_code_version_reruns_its_stage(done):
    versions = done / "src/framekd/versions.json"
    with altered(versions, lambda text: re.sub(rb'("downstream": \{\s*"version": )\d+', rb"\g<1>9", text)):
        found = rerun(done)
    assert found == {"downstream": 9, "table2": 1, "report": 1}


def test_the_ensemble_is_the_mean_of_its_teachers(done):
    from framekd.checkpoints import load_checkpoint
    from framekd.store import Store

    out = done / "results/tiny"
    store = Store(sorted((out / "data/store/strong").glob("*.h5")))
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


ONE_BY_ONE = ("models_per_job=1", "seeds_per_job=1")


def test_one_student_that_fails_for_good_costs_its_own_score_and_nothing_else(done, tmp_path):
    folder = tmp_path / "framekd"
    shutil.copytree(done, folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    out = folder / "results/tiny"
    before = {(r["setting"], r["model"]): r for r in rows(out / "table1.csv")}
    shutil.rmtree(out / "students/proposed"), shutil.rmtree(out / "evaluation/students/proposed")
    for path in out.glob("table*"):
        path.unlink()
    broken = out / "students/proposed/fPaSST/seed2/.resume"
    broken.mkdir(parents=True)
    with FileLock(broken / "lock"):
        run = snakemake(folder, "--cores", "2", "--keep-going", "all", *CONFIG, "--config", *ONE_BY_ONE)
    assert run.returncode != 0 and "table1.partial.csv" in run.stderr, run.stdout + run.stderr
    assert not (out / "table1.csv").exists() and not (out / "table2.partial.csv").exists()
    assert len(rows(out / "table2.csv")) == (2 + 1) * 3 * 2 * 3  # they start from the first seeds
    found = {(r["setting"], r["model"]): r for r in rows(out / "table1.partial.csv")}
    assert found.keys() == before.keys()
    for cell, row in found.items():
        missing = row.pop("missing")
        if cell == ("proposed", "fPaSST"):
            assert row["n"] == "1" and missing.startswith(
                "student fPaSST seed 2 of proposed: training failed: results/"
            )
            assert missing.endswith("see results/tiny/logs/students/proposed/fPaSST/seed2.log")
            assert missing in (out / "table1.partial.md").read_text()
        elif cell == ("proposed", "average"):
            assert row["n"] == "1" and missing == "1 of 2 seeds have every model"
        else:
            assert row == before[cell] and missing == ""
    # once nothing is in its way, the table is complete
    run = snakemake(folder, "--cores", "2", "results/tiny/table1.csv", *CONFIG, "--config", *ONE_BY_ONE)
    assert run.returncode == 0, run.stdout + run.stderr
    assert {(r["setting"], r["model"]): r for r in rows(out / "table1.csv")} == before
    assert not [*out.glob("*.partial.*")]


def kind(path: Path) -> str:
    """The first folders of a result's path, hidden ones, and the end of its name."""
    *folders, name = path.parts
    first = folders[: 2 if folders[:1] == ["data"] else 1]
    return "/".join([*first, *(folder for folder in folders if folder[0] == "."), Path(name).suffix or name])


def test_verify_finds_a_flipped_bit_in_every_kind_of_file_that_is_kept(done, tmp_path):
    out = tmp_path / "results"
    shutil.copytree(done / "results/tiny", out)
    first: dict[str, Path] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size):
        kept = ".leases" not in path.parts and not path.name.startswith(("lease.", "."))
        if kept and path.suffix not in (".log", ".lock", ".tag"):
            first.setdefault(kind(path.relative_to(out)), path)
    assert len(first) > 40 and {"students/.safetensors", "ensembles/.h5", "ensembles/.finished/.h5"} < first.keys()
    assert verify(out)[1] == []
    for path in first.values():
        state, content = path.stat(), bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a failing disk does it
    found = verify(out)[1]

    def names(line: str, path: Path) -> bool:
        return f"{path.parent}/" in line and path.name in line

    assert [k for k, path in first.items() if not any(names(line, path) for line in found)] == []
    assert [line for line in found if not any(names(line, path) for path in first.values())] == []


def test_the_same_jobs_again_give_the_same_bytes(done):
    """Last in this file, since it makes what follows from these jobs out of date."""
    out = done / "results/tiny"
    weights = out / "students/proposed/fPaSST/seed1/model.safetensors"
    table = out / "evaluation/students/proposed/fPaSST/seed1.csv"
    before = weights.read_bytes(), table.read_bytes()
    weights.unlink(), table.unlink()
    shutil.rmtree(weights.parent / ".finished")  # else it would be given back
    names = [str(path.relative_to(done)) for path in (weights, table)]
    again = snakemake(done, "--cores", "2", *names, *CONFIG)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert (weights.read_bytes(), table.read_bytes()) == before
