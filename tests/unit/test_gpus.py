"""One job a GPU on a machine without a scheduler, with an `nvidia-smi` that names two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framekd.gpus import assigned

JOB = """
import os, sys, time
from pathlib import Path
from framekd.gpus import assigned
with assigned(int(sys.argv[1])) as names:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(names)
    marks = [Path(f"gpu{name}") for name in names]
    for mark in marks:
        mark.touch(exist_ok=False)      # fails if another job has this GPU
    time.sleep(0.3)
    for mark in marks:
        mark.unlink()
print(",".join(names))
"""


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
    return {**kept, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}


def test_jobs_never_share_a_gpu(tmp_path, machine):
    begun = [
        subprocess.Popen([sys.executable, "-c", JOB, n], cwd=tmp_path, env=machine, stdout=-1, stderr=-1, text=True)
        for n in "11211"
    ]
    said = [process.communicate(timeout=60) for process in begun]
    assert [process.returncode for process in begun] == [0] * 5, said
    given = [out.splitlines()[-1] for out, _ in said]
    assert sorted(map(len, given)) == [1, 1, 1, 1, 3] and set("".join(given)) == {"0", "1", ","}


def test_a_killed_job_gives_its_gpu_back(tmp_path, machine):
    hold = (
        "import time; from framekd.gpus import assigned\nwith assigned(2): print('holds', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", hold], env=machine, stdout=-1, text=True)
    assert first.stdout.readline() == "holds\n"
    first.kill()
    first.wait()
    run = subprocess.run([sys.executable, "-c", JOB, "2"], cwd=tmp_path, env=machine, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.endswith("0,1\n"), run.stderr


def test_under_slurm_and_without_gpus_nothing_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with assigned(1) as names:
        assert names == [] and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with assigned(1) as names:
        assert names == [] and not list(Path(tmp_path).iterdir())
