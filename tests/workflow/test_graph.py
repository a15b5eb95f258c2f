"""What Snakemake plans, asked of Snakemake itself, in a copy of the repository that has no data."""

import re

import pytest
from conftest import jobs, snakemake


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")])
def test_the_papers_graph_is_planned_without_data(clone, profile):
    planned = jobs(snakemake(clone, "-n", *profile, "results/table1.csv"))
    teachers = sum(n for rule, n in planned.items() if rule.startswith("teacher_seed"))
    students = sum(n for rule, n in planned.items() if rule.startswith("student_seed"))
    # three sets of 15 teachers (without_kd shares those of without_rnn); four sets of 15 students
    assert (teachers, students, planned["ensemble"], planned["acquire"]) == (45, 60, 3, 200)
    assert (planned["step2"], planned["step2_external"]) == (2, 3)


def test_cluster_jobs_ask_for_what_the_configuration_says(clone):
    text = snakemake(
        clone, "-n", "--cores", "16", "--profile", "slurm", "results/teachers/proposed/BEATs/seed2/model.safetensors"
    ).stdout
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
