"""Leases: one holder at a time, a dead one is replaced, and a slow one that comes back ends itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from framekd import lease as module
from framekd.lease import Lease

HOLD = """
import sys, time
from framekd.lease import Lease
lease = Lease(sys.argv[1], beat=0.1, stale=1.0)
lease.wait(lambda s: print("waits:", s, flush=True), every=0.05)
print("holds", flush=True)
time.sleep(float(sys.argv[2]))
lease.release()
"""


def start(path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=-1, stderr=-1, text=True)


@pytest.fixture
def elsewhere(monkeypatch):
    """This process looks at leases as one on another machine would."""
    me = module._me
    monkeypatch.setattr(module, "_me", lambda: {**me(), "place": "another machine", "host": "there"})


def test_a_second_process_waits_until_the_first_gives_it_back(tmp_path):
    first = start(tmp_path / "l", 1.0)
    assert first.stdout.readline() == "holds\n"
    second = start(tmp_path / "l", 0)
    out, err = second.communicate(timeout=20)
    assert f"waits: process {first.pid} on " in out and out.endswith("holds\n") and not err
    assert first.wait(5) == 0 and first.stdout.read() == ""
    assert [p.name for p in tmp_path.iterdir()] == ["l.2"]


def test_a_killed_process_of_this_machine_is_replaced_at_once(tmp_path):
    first = start(tmp_path / "l", 60)
    assert first.stdout.readline() == "holds\n"
    assert Lease(tmp_path / "l").take() == f"process {first.pid} on {module.socket.gethostname()}"
    first.kill()
    first.wait()
    lease = Lease(tmp_path / "l")
    assert lease.take() is None
    lease.release()


def test_a_silent_process_of_another_machine_is_replaced_after_the_stated_time_and_not_before(tmp_path, elsewhere):
    first = start(tmp_path / "l", 60)
    assert first.stdout.readline() == "holds\n"
    lease = Lease(tmp_path / "l", beat=0.1, stale=1.0)
    for _ in range(16):  # alive for longer than `stale`
        assert lease.take() is not None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGSTOP)
    began = time.monotonic()
    lease.wait(lambda sentence: None, every=0.05)
    assert 0.7 < time.monotonic() - began < 5
    # it comes back, sees that it is replaced, and ends
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(5) == module.LOST
    assert "was taken over; this process ends" in first.stderr.read()
    assert not lease.lost()
    lease.release()


def test_a_job_of_slurm_that_started_again_replaces_itself(tmp_path, monkeypatch, elsewhere):
    held = {"pid": 1, "place": "a node", "host": "n1", "started": "1", "job": "7", "cluster": "c"}
    (tmp_path / "l.3").write_text(json.dumps(held) + "\n...")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setattr(module.slurm, "state", lambda job: "RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert Lease(tmp_path / "l").take() == "process 1 on n1, Slurm job 7"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    lease = Lease(tmp_path / "l")
    assert lease.take() is None and [p.name for p in tmp_path.iterdir()] == ["l.4"]
    lease.release()


@pytest.mark.parametrize(("state", "dead"), [("", True), ("TIMEOUT", True), ("RUNNING", False), (None, False)])
def test_slurm_knows_whether_the_job_of_a_lease_has_ended(tmp_path, monkeypatch, elsewhere, state, dead):
    held = {"pid": 1, "place": "a node", "host": "n1", "started": "1", "job": "7", "cluster": None}
    (tmp_path / "l.1").write_text(json.dumps(held) + "\n")
    monkeypatch.setattr(module.slurm, "state", lambda job: state)
    lease = Lease(tmp_path / "l")
    assert (lease.take() is None) == dead
    lease.release()


def test_of_many_that_take_over_at_once_one_holds(tmp_path):
    held = {"pid": 2**22 + 1, "place": module._me()["place"], "host": "h", "started": "1"}
    for turn in range(20):
        (tmp_path / f"{turn}.1").write_text(json.dumps(held) + "\n")
        leases = [Lease(tmp_path / str(turn)) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda lease: lease.take() is None, leases))
        assert sum(taken) == 1
        for lease in leases:
            lease.release()


@pytest.mark.parametrize("text", ["", "{", "[]\n", "\0\0\n...", '{"pid": "x"}\n'])
def test_a_damaged_lease_is_replaced_when_nothing_changes_it(tmp_path, text):
    (tmp_path / "l.1").write_text(text)
    lease = Lease(tmp_path / "l", stale=0.2)
    assert lease.take() is not None
    lease.wait(lambda sentence: None, every=0.05)
    lease.release()


def test_a_folder_that_is_removed_ends_nobody(tmp_path):
    import shutil

    lease = Lease(tmp_path / "folder" / "l", beat=0.05)
    assert lease.take() is None
    shutil.rmtree(tmp_path / "folder")
    time.sleep(0.2)
    assert not lease.lost()
    lease.release()
    assert not (tmp_path / "folder").exists()
