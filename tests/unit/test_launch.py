"""Several processes that train together: through a job of the graph, told to stop, and when one of them fails."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from small_audioset import train_job, write_audioset, write_step1
from training_runs import fail_in_one, slow_run, start

from framekd.config import UserError
from framekd.pipeline.train import processes, train_strong
from framekd.train import STOPPED, launch

SCRIPT = """
import json, sys
from types import SimpleNamespace
from framekd.pipeline import job_log

job, inputs, weights, log = json.loads(sys.argv[1])
params = SimpleNamespace(job=job)
about = dict(rule="train", log=[log], threads=2, resources={}, params=params, input=[], output=weights)
with job_log(SimpleNamespace(**about)):
    from framekd.jobs import TrainJob
    from framekd.pipeline.train import train_strong

    print("the job begins")
    train_strong(TrainJob.model_validate(job), inputs=inputs, weights=weights, processes=2)
"""


def test_a_job_of_two_processes_trains_as_one_does(tmp_path):
    """Through a program without a guard, as Snakemake's scripts are; all output is in the job's log."""
    inputs = {**write_audioset(tmp_path / "data"), "weights": [write_step1(tmp_path)]}
    job = train_job(learning_rate=1e-3, ema=0.9)
    script, log = tmp_path / "job.py", tmp_path / "job.log"
    script.write_text(SCRIPT)
    two = str(tmp_path / "two" / "seed1" / "model.safetensors")
    given = json.dumps([job.model_dump(mode="json"), inputs, [two], str(log)])
    ran = subprocess.run([sys.executable, script, given], capture_output=True, text=True, timeout=120)
    said = log.read_text()
    assert ran.returncode == 0 and ran.stdout == ran.stderr == "", said + ran.stderr
    assert said.count("the job begins") == 1 and "clips" in said  # the bar of the first process

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = str(tmp_path / "one" / "seed1" / "model.safetensors")
    train_strong(job, inputs=inputs, weights=[one])
    torch.set_num_threads(threads)

    folders = [Path(weights).parent for weights in (one, two)]
    histories = [[json.loads(line) for line in (f / "history.jsonl").read_text().splitlines()] for f in folders]
    assert len(histories[0]) == 10
    for a, b in zip(*histories, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-5)
    weights = [load_file(path) for path in (one, two)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])
    notes = [json.loads((f / "spec.json").read_text())["provenance"] for f in folders]
    assert [note["processes"] for note in notes] == [1, 2]
    left = {path.name for path in folders[1].iterdir()}
    assert left == {".finished", "model.safetensors", "spec.json", "history.jsonl"}


def begun(directory):
    """A job of two processes that has taken two steps since it was started."""
    history, until = directory / ".resume" / "history.jsonl", time.monotonic() + 60
    job = start(launch, partial(slow_run, pause=0.2), "student", directory, processes=2)
    while not (history.exists() and len(history.read_text().splitlines()) >= 2):
        assert time.monotonic() < until and job.is_alive()
        time.sleep(0.05)
    return job


def test_a_signal_stops_all_processes_with_one_state_that_continues(tmp_path):
    job = begun(tmp_path)
    os.kill(job.pid, signal.SIGTERM)
    job.join(30)
    assert job.exitcode == STOPPED
    assert (tmp_path / ".resume" / "state.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    launch(slow_run, "student", tmp_path, processes=1)
    assert (tmp_path / "model.safetensors").exists()


def test_no_process_outlives_a_job_that_was_killed(tmp_path):
    job = begun(tmp_path)
    job.kill()
    job.join()
    lock = FileLock(tmp_path / ".resume" / "lock")
    with lock.acquire(timeout=10):  # the first process held it
        assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("mistake", UserError, "^the file x is not there$"),
        ("crash", RuntimeError, r"exit codes .*1.*; the log above has their errors"),
    ],
)
def test_what_ends_one_ends_all(how, kind, words, monkeypatch):
    monkeypatch.setattr(sys.modules["framekd.train.parallel"], "PATIENCE", 0.5)
    with pytest.raises(kind, match=words):
        launch(fail_in_one, how, processes=2)


def test_a_job_has_as_many_processes_as_gpus_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [processes(n) for n in (0, 1, 2, 4, 8)] == [1, 1, 2, 4, 4]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [processes(n) for n in (0, 1, 4)] == [1, 1, 1]
