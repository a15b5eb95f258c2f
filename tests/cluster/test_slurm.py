"""Trainings on a real Slurm: disturbed in every way that a cluster knows, and byte-equal in the end.

The rows of the table in docs/reliability.md are named after these tests. Those marked `long` run in `make torture`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_here import Cluster, cluster, install, wait_for

from snakemake_executor_plugin_framekd_slurm import PATIENCE, Executor, _states

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from conftest import ROOT, copy_repository, snakemake
from disturbed import digests

CONFIG = ("--configfile", "config/demo.yaml", "students.yaml", "cluster.yaml")
SLURM = ("--profile", "slurm", "--framekd-slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20")
DIFFERENCE = """
models: [ATST-F]
models_per_job: 1
seeds_per_job: 1
seeds: [1, 2, 3, 4, 5, 6]
step2: {train: [ATST-F], soft_labels: {logits: null, index: null, members: [ATST-F]}}
student: {recipe: {epochs: 40, epoch_clips: 32}}
resources: {student: {gpu: 1, threads: 1, mem_mb: 2000, runtime: 10}}
site: {cpu: {slurm_partition: cpu}, gpu: {slurm_partition: main}}
"""
long = pytest.mark.skipif("FRAMEKD_LONG" not in os.environ, reason="part of make torture")
if reason := install():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def here():
    with cluster() as up:
        yield up


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A copy of the repository with all that a student starts from."""
    folder = copy_repository(tmp_path_factory.mktemp("cluster") / "framekd")
    shutil.copy(ROOT / "tests/workflow/students.yaml", folder)
    (folder / "cluster.yaml").write_text(DIFFERENCE)
    run = snakemake(folder, "--cores", "2", *CONFIG, "--until", "gate", "step1", "--", student(1))
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def whole(prepared) -> dict[int, str]:
    """Weights of seed 1, trained without Slurm and undisturbed; their hash."""
    folder = prepared.with_name("undisturbed")
    shutil.copytree(prepared, folder, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    run = snakemake(folder, "--cores", "1", *CONFIG, "--", student(1))
    assert run.returncode == 0, run.stdout + run.stderr
    return {1: digest(folder, 1)}


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    target = tmp_path / "framekd"
    shutil.copytree(prepared, target, symlinks=True)
    return target


def student(seed: int) -> str:
    return f"results/students/students/proposed/ATST-F/seed{seed}/model.safetensors"


def digest(folder: Path, seed: int) -> str:
    return hashlib.sha256((folder / student(seed)).read_bytes()).hexdigest()


class Run:
    """A run of Snakemake through Slurm, in the background."""

    def __init__(
        self, here: Cluster, folder: Path, *arguments: str,
        program: tuple[str, ...] = ("-m", "snakemake"), config: tuple[str, ...] = CONFIG,
    ):  # fmt: skip
        self.log = folder / f"run{time.monotonic_ns()}.txt"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *program, *SLURM, *config, *arguments],
                cwd=folder, env=here.env, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = 240.0) -> str:
        """Wait for its end; returns what it printed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(self.log.read_text()[-4000:]) from None
        return self.log.read_text()


def training(here: Cluster, folder: Path, step: int = 3) -> str:
    """Wait until the student of seed 1 trains; returns the number of its job."""
    history = folder / "results/students/students/proposed/ATST-F/seed1/.resume/history.jsonl"
    wait_for("a training", lambda: history.exists() and history.read_text().count("\n") >= 1, 120)
    jobs = {number: about for number, about in here.queue().items() if about[1].startswith("student")}
    assert len(jobs) == 1, jobs
    return next(iter(jobs))


def submitted(text: str) -> int:
    return len(re.findall(r"has been submitted with SLURM jobid", text))


@pytest.fixture
def slowly(here, tmp_path, monkeypatch) -> None:
    """Slurm answers questions about jobs after 3 s, later than they are first asked."""
    script = tmp_path / "bin/squeue"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nsleep 3\nexec {shutil.which("squeue")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setitem(here.env, "PATH", f"{script.parent}:{here.env['PATH']}")


def test_the_run_as_typed_gives_the_same_bytes_and_says_what_it_does(here, folder, whole, slowly):
    run = Run(here, folder, "--", student(1))
    job = training(here, folder)
    state, name, comment = here.queue()[job]
    assert (state, comment) == ("RUNNING", "rule_student_seed1_wildcards_proposed_ATST-F")
    assert re.fullmatch(r"student_seed1\.proposed\.ATST-F\.[0-9a-f]{8}", name)
    assert "Partition=main" in here.run("scontrol", "show", "job", job).stdout
    text = run.wait()
    assert run.process.returncode == 0 and submitted(text) == 1, text[-3000:]
    assert digest(folder, 1) == whole[1]


def test_a_preempted_job_is_queued_again_by_slurm_and_goes_on(here, folder, whole):
    run = Run(here, folder, "--retries", "0", "--", student(1))
    job = training(here, folder)
    urgent = here.run(
        "sbatch", "--parsable", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )
    wait_for("preemption", lambda: here.queue().get(job, ("",))[0] != "RUNNING", 60)
    text = run.wait()
    assert run.process.returncode == 0 and submitted(text) == 1 and urgent.returncode == 0, text[-3000:]
    assert digest(folder, 1) == whole[1]


def test_after_a_killed_master_one_command_goes_on_with_the_job_that_still_runs(here, folder, whole):
    run = Run(here, folder, "--", student(1))
    job = training(here, folder)
    assert here.run("scontrol", "suspend", job).returncode == 0  # so that it does not end before it is taken over
    refused = Run(here, folder, "--", student(1), program=("-m", "framekd.cli", "resume"))
    assert "runs Snakemake in this folder; end it first" in refused.wait(120) and refused.process.returncode == 1
    run.process.kill()
    run.process.wait()
    taken_over = f"runs already, as Slurm job {job} of an earlier run"
    again = Run(here, folder, "--", student(1), program=("-m", "framekd.cli", "resume"))
    wait_for("the job to be taken over", lambda: taken_over in again.log.read_text(), 120)
    assert here.run("scontrol", "resume", job).returncode == 0
    text = again.wait()
    assert again.process.returncode == 0 and "it is unlocked" in text, text[-3000:]
    assert submitted(text) == 0 and digest(folder, 1) == whole[1]


def test_what_slurm_can_never_run_fails_once_with_its_reason(here, folder):
    (folder / "cluster.yaml").write_text(DIFFERENCE.replace("gpu: 1,", "gpu: 1, gpu_model: h100,"))
    text = Run(here, folder, "--", student(1)).wait(200)
    assert text.count("Slurm refuses it: ") == 1 and "Requested node configuration is not available" in text
    assert "Trying to restart job" not in text


def test_doctor_asks_slurm_about_every_stage_and_reports_from_a_node(here, folder):
    (folder / "site.yaml").write_text(
        DIFFERENCE.replace("resources: {", "resources: {labels: {slurm_partition: nowhere}, ")
    )
    command = [sys.executable, "-m", "framekd.cli", "doctor", "--slurm", "--configfile", *CONFIG[1:3], "site.yaml"]
    run = subprocess.run(command, cwd=folder, env=here.env, capture_output=True, text=True, timeout=400)
    text = run.stdout + run.stderr
    assert "resources.labels: Slurm refuses its jobs: invalid partition specified: nowhere" in text, text
    assert "was submitted with the resources of a teacher" in text and "torch sees" in text, text
    assert "resources.student" not in text and not list(folder.glob(".doctor-*"))


def test_a_duplicate_waits_and_then_takes_what_the_first_has_made(here, folder, whole):
    """A second run without Slurm, in the same folder: no name of a job tells it of the first."""
    run = Run(here, folder, "--", student(1))
    training(here, folder)
    second = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", *CONFIG, "--", student(1)],
        cwd=folder, env=here.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    logs = folder / "results/students/logs/students/proposed/ATST-F"
    wait_for("the log of the second", lambda: list(logs.glob("seed1.waiting-*.log")), 150)
    run.wait()
    text, _ = second.communicate(timeout=300)
    assert second.returncode == 0, text[-3000:]
    said = (logs / "seed1.log").read_text()
    assert "waited until here" in said and "was finished before" in said and digest(folder, 1) == whole[1]


@long
@pytest.mark.parametrize("how", ["scancel", "kill -9", "SIGUSR1"])
def test_a_job_that_is_ended_comes_back_and_goes_on(here, folder, whole, how):
    run = Run(here, folder, "--", student(1))
    job = training(here, folder)
    if how == "scancel":
        here.run("scancel", job)
    elif how == "SIGUSR1":
        here.run("scancel", "-s", "USR1", job)
    else:
        mark, script = f"SLURM_JOB_ID={job}".encode(), b"scripts/"
        for number in here.processes():
            try:
                environment, line = (
                    Path(f"/proc/{number}/environ").read_bytes(),
                    Path(f"/proc/{number}/cmdline").read_bytes(),
                )
            except OSError:
                continue
            if mark in environment.split(b"\0") and script in line and b"snakemake" in line:
                os.kill(number, signal.SIGKILL)
    text = run.wait()
    assert run.process.returncode == 0, text[-3000:]
    assert digest(folder, 1) == whole[1]


@long
@pytest.mark.parametrize("when", ["while a job runs", "while it is submitted"])
def test_a_controller_that_is_away_costs_nothing(here, folder, whole, when):
    if when == "while it is submitted":
        here.stop_controller()
    run = Run(here, folder, "--", student(1))
    try:
        if when == "while a job runs":
            training(here, folder)
            here.stop_controller()
        else:
            wait_for("the submission", lambda: "rule student" in run.log.read_text(), 120)
        time.sleep(15)
    finally:
        here.start_controller()
    text = run.wait(600)
    assert run.process.returncode == 0 and submitted(text) == 1, text[-3000:]
    assert digest(folder, 1) == whole[1]


@long
def test_ctrl_c_ends_the_jobs_and_the_next_start_goes_on(here, folder, whole):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    run = Run(here, folder, "--", student(1))
    training(here, folder)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.process.wait(120) != 0
    wait_for("the end of the job", lambda: not here.queue(), 60)
    assert (folder / student(1)).with_name(".resume").is_dir() and not (folder / student(1)).exists()
    again = Run(here, folder, "--", student(1))
    text = again.wait(600)
    assert again.process.returncode == 0 and digest(folder, 1) == whole[1], text[-3000:]


@long
def test_a_training_longer_than_its_wall_time_goes_on_within_one_start_and_one_attempt(here, folder, tmp_path):
    text = DIFFERENCE.replace("runtime: 10", "runtime: 1").replace("epochs: 40", "epochs: 150")
    (folder / "cluster.yaml").write_text(text)
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, symlinks=True, ignore=shutil.ignore_patterns(".snakemake"))
    run = Run(here, folder, "--retries", "0", "--", student(1))
    training(here, folder)
    said = run.wait(1200)
    assert run.process.returncode == 0 and submitted(said) == 1, said[-3000:]
    assert snakemake(alone, "--cores", "1", *CONFIG, "--", student(1)).returncode == 0
    assert digest(folder, 1) == digest(alone, 1)


def state(job: str) -> str:
    return (_states("squeue", [job]) or {}).get(job, "")


def sleeping(here: Cluster, *options: str) -> str:
    """A job that sleeps; its number, once it runs."""
    command = ["sbatch", "--parsable", "-o", "/dev/null", *options, "--wrap", "exec sleep 300"]
    job = here.run(*command).stdout.strip()
    wait_for("a job", lambda: state(job) == "RUNNING", 60)
    return job


def verdict(job: str, record: Path) -> str | None:
    """What the executor says of a job when it has looked often enough."""
    executor = Executor.__new__(Executor)
    executor._looks = {}
    member = SimpleNamespace(is_group=lambda: False, log=[record.with_suffix(".log")])
    about = SimpleNamespace(external_jobid=job, job=member)
    found = [executor._verdict(about, state(job)) for _ in range(PATIENCE)]
    assert found[:-1] == [None] * (PATIENCE - 1)
    return found[-1]


def test_a_job_whose_node_fails_ends_unless_slurm_queues_it_again(here, tmp_path):
    ends, stays = sleeping(here, "--no-requeue", "-w", "d2"), sleeping(here, "--requeue", "-w", "d2")
    assert here.run("scontrol", "update", "nodename=d2", "state=down", "reason=test").returncode == 0
    try:
        wait_for("the end of both", lambda: state(ends) == "NODE_FAIL" and state(stays) != "RUNNING", 60)
        assert verdict(ends, tmp_path / "none.json") == "NODE_FAIL, and Slurm does not queue it again"
        wait_for("the queue", lambda: state(stays) == "PENDING", 60)
        assert verdict(stays, tmp_path / "none.json") is None
    finally:
        here.run("scontrol", "update", "nodename=d2", "state=resume")
        here.settle()


def test_a_preempted_job_that_slurm_cancels_ends(here, tmp_path):
    job = sleeping(here, "-p", "spare", "-N2", "--exclusive")
    here.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
    wait_for("preemption", lambda: state(job) == "PREEMPTED", 60)
    assert verdict(job, tmp_path / "none.json") == "PREEMPTED, and Slurm does not queue it again"
    here.settle()


def test_a_job_that_slurm_has_lost_ended_well_if_it_left_its_record(here, tmp_path):
    job, record = sleeping(here), tmp_path / "record.json"
    here.forget()
    assert state(job) == "" and _states("squeue", [job]) is not None
    assert verdict(job, record) == "Slurm does not know it any more, and it left no record of its end"
    record.write_text("{}")
    assert verdict(job, record) == "COMPLETED"


@long
@pytest.mark.parametrize("how", ["its node fails", "preempted", "lost", "lost after its end"])
def test_a_job_that_slurm_drops_is_submitted_again_unless_it_had_ended_well(here, folder, whole, how):
    if how == "preempted":
        (folder / "cluster.yaml").write_text(DIFFERENCE.replace("slurm_partition: main", "slurm_partition: spare"))
    run = Run(here, folder, "--", student(1))
    job = training(here, folder)
    node = here.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    if how == "its node fails":
        here.run("scontrol", "update", f"jobid={job}", "requeue=0")
        here.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    elif how == "preempted":
        here.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    elif how == "lost":
        here.forget()
    else:
        here.stop_controller()
        record = folder / "results/students/logs/students/proposed/ATST-F/seed1.json"
        wait_for("the end of the training", record.is_file, 240)
        here.start_controller("-c")
    try:
        text = run.wait(600)
    finally:
        here.run("scontrol", "update", f"nodename={node}", "state=resume")
    assert run.process.returncode == 0 and digest(folder, 1) == whole[1], text[-3000:]
    assert submitted(text) == (1 if how == "lost after its end" else 2), text[-3000:]


@long
def test_the_whole_graph_in_small_gives_the_same_bytes(here, tmp_path):
    config = ("--configfile", "config/demo.yaml", "tests/workflow/tiny.yaml")
    alone, through = copy_repository(tmp_path / "alone"), copy_repository(tmp_path / "through")
    without = snakemake(alone, "--cores", "2", *config, "--", "all")
    assert without.returncode == 0, without.stderr[-3000:]
    run = Run(here, through, "--", "all", config=config)
    text = run.wait(3600)
    assert run.process.returncode == 0 and submitted(text) > 30, text[-3000:]
    expected = digests(alone / "results/tiny")
    assert len(expected) > 80 and digests(through / "results/tiny") == expected


def test_the_cluster_leaves_nothing_behind(here):
    here.stop()
    assert here.processes() == [] and not list(Path("/etc/slurm").glob("*gres*"))
    assert all(daemon.poll() is not None for daemon in here.daemons.values())
