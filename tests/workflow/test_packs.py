"""A real run of students in packs: one that fails for good, another packing, and own recordings beside AudioSet's."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, copy_repository, jobs, snakemake
from filelock import FileLock

from framekd.cli import main

sys.path.insert(0, str(ROOT / "tools"))
from disturbed import Disturbed, digests

TABLE, FROM_STUDENT = "results/students/table1.csv", "results/students/downstream/DC16-T2/fPaSST/full.csv"
CONFIG = ("--configfile", "config/demo.yaml", "students.yaml")
RUN = ("--cores", "2", "--keep-going", TABLE, FROM_STUDENT, *CONFIG)


def rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["setting"], row["model"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A copy of the repository in which the students have been trained and scored."""
    folder = copy_repository(tmp_path_factory.mktemp("packs") / "framekd")
    shutil.copy(ROOT / "tests/workflow/students.yaml", folder)
    run = snakemake(folder, *RUN)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A training in `folder` fails at once."""
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        yield


@contextmanager
def killed(folder: Path) -> Iterator[None]:
    """Every process that has a file in `folder` open is killed."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if any(file.path.startswith(f"{folder}/") for file in process.open_files()):
                        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_run_that_is_killed_at_random_moments_gives_the_same_bytes(done, tmp_path):
    """tools/torture.py in small: the students and what follows, from audio and Step 1 on."""

    def begun(folder: Path) -> None:
        shutil.copytree(done, folder, symlinks=True)
        out = folder / "results/students"
        shutil.rmtree(out / "students"), shutil.rmtree(out / "evaluation/students")
        shutil.rmtree(out / "downstream")
        for path in out.glob("table1.*"):
            path.unlink()

    expected = digests(done / "results/students")
    assert sum("model.safetensors" in name for name in expected) >= 6 and "table1.csv" in expected
    moments: list[dict] = []
    runs = Disturbed(
        tmp_path, begun, RUN, "results/students", chance=random.Random(3), within=20.0, says=moments.append
    )
    count = int(os.environ.get("FRAMEKD_MOMENTS", "4"))
    found = runs.run(count, expected)
    assert found == {"moments": count, "wrong": [], "lost": [], "hung": False, "failed": False}, (
        found, moments, runs.output.read_text()[-3000:],
    )  # fmt: skip


@pytest.mark.parametrize("broken", [locked, killed])
def test_a_student_that_fails_in_a_pack_costs_its_own_cell_and_nothing_else(done, broken):
    out = done / "results/students"
    before, transferred = rows(out / "table1.csv"), (out / "downstream/DC16-T2/fPaSST/full.csv").read_bytes()
    for path in [*out.glob("table1.*"), *out.glob("downstream/DC16-T2/*/full.csv")]:
        path.unlink()
    shutil.rmtree(out / "students"), shutil.rmtree(out / "evaluation/students")
    with broken(out / "students/proposed/fPaSST/seed2/.resume"):
        run = snakemake(done, *RUN)
    said = run.stdout + run.stderr
    assert run.returncode != 0 and said.count("Second pass, one training per job") == 1, said[-4000:]
    log = (out / "logs/students/proposed/pack1/seed1_2.log").read_text()
    assert ("framekd: 1 of 4 failed; the others are finished and kept: fPaSST seed 2: " in log) == (broken is locked)
    assert "was finished before" in (out / "logs/students/proposed/ATST-F/seed2.log").read_text()
    assert not (out / "table1.csv").exists()
    found = rows(out / "table1.partial.csv")
    missing = {cell: row.pop("missing") for cell, row in found.items()}
    assert missing["proposed", "fPaSST"].startswith("student fPaSST seed 2 of proposed: training failed: ")
    assert missing["proposed", "fPaSST"].endswith("see results/students/logs/students/proposed/fPaSST/seed2.log")
    assert [found["proposed", model]["n"] for model in ("ATST-F", "fPaSST", "average")] == ["2", "1", "1"]
    assert found["proposed", "ATST-F"] == before["proposed", "ATST-F"] and missing["proposed", "ATST-F"] == ""
    assert (out / "downstream/DC16-T2/fPaSST/full.csv").read_bytes() == transferred  # it starts from the first seed

    # once nothing is in its way, the packs run again, and only the missing student is trained
    run = snakemake(done, *RUN)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    log = (out / "logs/students/proposed/pack1/seed1_2.log").read_text()
    assert log.count("was finished before") == 3
    assert rows(out / "table1.csv") == before and not [*out.glob("table1.partial.*")]
    assert jobs(snakemake(done, "-n", *RUN[2:])) == {}


def test_another_packing_runs_jobs_again_and_trains_nothing(done):
    out = done / "results/students"
    weights = out / "students/proposed/ATST-F/seed1/model.safetensors"
    before = weights.read_bytes()
    one_by_one = ("--config", "models_per_job=1", "seeds_per_job=1")
    planned = jobs(snakemake(done, "-n", TABLE, *CONFIG, *one_by_one))
    assert planned["student_seed1"] == planned["student_seed2"] == 2 and "acquire" not in planned
    target = str(weights.relative_to(done))
    run = snakemake(done, "--cores", "2", target, *CONFIG, *one_by_one)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert "was finished before" in (out / "logs/students/proposed/ATST-F/seed1.log").read_text()
    assert weights.read_bytes() == before
    assert jobs(snakemake(done, "-n", TABLE, *CONFIG, *one_by_one, "--rerun-triggers", "mtime")).keys() <= {
        *("evaluate_seed1", "evaluate_seed2", "table1")
    }


def test_own_recordings_and_classes_join_a_run(done, tmp_path):
    """Real recordings under a name of one's own, and under one of AudioSet, from the table of events to the scores."""
    folder, own = tmp_path / "framekd", tmp_path / "own"
    shutil.copytree(done, folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    own.mkdir()
    table = ["filename\tonset\toffset\tevent_label"]
    for name, label in (("bleat", "My goat"), ("bell", "Bell")):
        for path in sorted((folder / "miniature/recordings").glob(f"{name}_*.ogg"))[:4]:
            shutil.copy(path, own)
            table.append(f"{path.name}\t0\t0.4\t{label}")
    (own / "own.tsv").write_text("\n".join(table) + "\n")
    (folder / "own.yaml").write_text(f"audioset: {{extra: {{labels: {own}/own.tsv, audio: {own}}}}}")
    out = folder / "results/students"
    student, scored = out / "students/proposed/fPaSST/seed1", out / "evaluation/students/proposed/fPaSST/seed1.csv"
    classes = json.loads((student / "spec.json").read_text())["classes"]
    with scored.open(newline="") as file:
        before = next(csv.DictReader(file))
    target = (str(scored.relative_to(folder)), *CONFIG, "own.yaml")
    run = snakemake(folder, "--cores", "2", *target)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    said = (out / "logs/data/extra.log").read_text()
    assert "8 recordings, 8 clips; 1 new classes (My goat)" in said and "with further clips: Bell" in said
    assert json.loads((student / "spec.json").read_text())["classes"] == [*classes, "My goat"]
    with scored.open(newline="") as file:
        after = next(csv.DictReader(file))
    counted = ("clips", "events", "classes")  # of AudioSet's evaluation clips
    assert [after[name] for name in counted] == [before[name] for name in counted]
    assert jobs(snakemake(folder, "-n", *target)) == {}
    words = ["--model", str(student), "--labels", str(own / "own.tsv"), "--audio", str(own), "--out", str(own)]
    assert main(["evaluate", *words]) == 0
    with (own / "scores.csv").open(newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"(all)", "Bell", "My goat"}
