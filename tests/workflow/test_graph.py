"""What Snakemake plans, asked of Snakemake itself, in a copy of the repository that has no data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("snakemake")
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )


def jobs(run: subprocess.CompletedProcess) -> dict[str, int]:
    """The table of planned jobs: rule → count."""
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    if "Job stats:" not in text:
        return {}
    table = text.split("Job stats:")[-1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\S+)\s+(\d+)$", table, flags=re.M)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The repository without results and data."""
    folder = tmp_path_factory.mktemp("clone") / "framekd"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "scripts", "config", "profiles", "src", "miniature"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")])
def test_the_papers_graph_is_planned_without_data(clone, profile):
    planned = jobs(snakemake(clone, "-n", *profile, "results/table1.csv"))
    teachers = sum(n for rule, n in planned.items() if rule.startswith("teacher_seed"))
    students = sum(n for rule, n in planned.items() if rule.startswith("student_seed"))
    # three sets of 15 teachers (without_kd shares those of without_rnn); four sets of 15 students
    assert (teachers, students, planned["ensemble"], planned["acquire"]) == (45, 60, 3, 200)
    assert (planned["step2"], planned["step2_external"]) == (2, 3)


def test_cluster_jobs_ask_for_what_the_configuration_says(clone):
    text = snakemake(clone, "-n", "--cores", "16", "--profile", "slurm", "results/teachers/proposed/BEATs/seed2/model.safetensors").stdout
    job = text.split("rule teacher_seed2:")[1].split("\n[")[0]
    assert re.search(r"threads: 12\n", job) and "gpu=1" in job and "mem_mb=64000" in job and "runtime=1440" in job


def test_everything_is_planned_for_the_demo(clone):
    planned = jobs(snakemake(clone, "-n", "--configfile", "config/demo.yaml"))
    assert planned["teacher_seed1_2_3"] == 15 and planned["student_seed1_2_3"] == 20 and planned["step2"] == 5
    assert planned["downstream"] == 45 and planned["report"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("student: {recipe: {epohcs: 3}}", ["student.recipe.epohcs", "did you mean 'epochs'"]),
        ("seeds: []", ["seeds", "at least one"]),
        ("evaluation: {median_seconds: long}", ["evaluation.median_seconds", "'long'", "median_seconds: 0.48"]),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_planned(clone, tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    run = snakemake(clone, "-n", "results/table1.csv", "--configfile", str(path))
    said = run.stdout + run.stderr
    assert run.returncode != 0 and "Traceback" not in said and "Job stats" not in said
    assert all(word in said for word in words), said
