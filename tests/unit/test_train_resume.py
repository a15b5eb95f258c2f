"""A run that is killed and continued ends in the weights of one that was left alone, bit for bit."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_runs import RUNS, STEPS, random_deaths, run, slow_run, start

from framekd.config import UserError
from framekd.train import STOPPED, Diverged, Stopped

KILLED = -signal.SIGKILL


def finish(process, seconds=60):
    process.join(seconds)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def losses(directory):
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"], line["train/lr"]) for line in lines]


@pytest.mark.parametrize("kind", RUNS)
def test_killed_ten_times_and_continued_equals_undisturbed(kind, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    whole = start(run, kind, alone)
    # Each life saves every step and dies within its first two, in a random part of a step.
    for die_at in random_deaths(10, seed=len(kind)):
        assert finish(start(run, kind, killed, die_at=die_at, save_steps=1)) == KILLED
    assert finish(start(run, kind, killed)) == 0
    assert finish(whole) == 0
    expected, got = load_file(alone / "model.safetensors"), load_file(killed / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert losses(alone) == losses(killed) and len(losses(alone)) == STEPS
    assert not (killed / ".resume").exists()


def test_a_run_that_pauses_twice_ends_as_one_that_did_not_and_takes_no_step_twice(tmp_path):
    alone, paused = tmp_path / "alone", tmp_path / "paused"
    run("averaged", alone)
    steps = []
    for until in (7, 7, 13, STEPS + 5):
        assert not (paused / "model.safetensors").exists()
        result, taken = run("averaged", paused, until=until)
        steps.append(taken)
        assert result.steps == min(until, STEPS)
    assert steps == [7, 0, 6, STEPS - 13]
    expected, got = load_file(alone / "model.safetensors"), load_file(paused / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert losses(alone) == losses(paused) and not (paused / ".resume").exists()


def wait_for_state(process, directory, line=3):
    history = directory / ".resume" / "history.jsonl"
    until = time.monotonic() + 30
    while not (history.exists() and len(history.read_text().splitlines()) >= line):
        assert time.monotonic() < until and process.is_alive()
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_leaves_within_seconds(name, tmp_path):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    whole = start(slow_run, "teacher", alone, pause=0.0)
    process = start(slow_run, "teacher", stopped)
    wait_for_state(process, stopped)
    began = time.monotonic()
    os.kill(process.pid, getattr(signal, name))
    assert finish(process) == STOPPED
    assert time.monotonic() - began < 10
    with safe_open(stopped / ".resume" / "state.safetensors", "pt") as state:
        assert 3 <= json.loads(state.metadata()["progress"])["step"] < STEPS
    assert finish(start(slow_run, "teacher", stopped, pause=0.0)) == 0
    assert finish(whole) == 0
    expected, got = load_file(alone / "model.safetensors"), load_file(stopped / "model.safetensors")
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_second_writer_is_refused_in_a_sentence(tmp_path):
    process = start(slow_run, "student", tmp_path, pause=0.3)
    wait_for_state(process, tmp_path, line=1)
    with pytest.raises(UserError, match=f"is being trained by process {process.pid} on"):
        run("student", tmp_path)
    process.kill()
    process.join()
    run("student", tmp_path)  # the lock died with its owner
    assert (tmp_path / "model.safetensors").exists()


def test_the_wall_time_is_respected(tmp_path, monkeypatch):
    with pytest.raises(Stopped, match="the wall time is nearly over; saved after step 1 of 20") as stopped:
        run("student", tmp_path / "limit", time_limit=0.0)
    assert stopped.value.code == STOPPED == 75
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 15))
    with pytest.raises(Stopped, match="saved after step 1 of 20"):
        run("student", tmp_path / "slurm")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert run("student", tmp_path / "slurm")[1] == STEPS - 1  # continues after the first


def test_a_state_of_another_run_is_not_continued(tmp_path):
    with pytest.raises(Stopped):
        run("student", tmp_path, time_limit=0.0)
    assert run("student", tmp_path, identity={"ensemble": "another"})[1] == STEPS


def test_divergence_names_step_and_clips_and_keeps_the_last_good_state(tmp_path):
    def forward(model, mel, generator):
        forward.calls += 1
        frames, clips = model(mel, generator=generator)
        return (frames * float("nan") if forward.calls == 9 else frames), clips

    forward.calls = 0
    with pytest.raises(Diverged, match=r"the loss is nan at step 8 \(clips clip\d{7}_0, .*lower the learning rate"):
        run("student", tmp_path, forward=forward)
    with safe_open(Path(tmp_path) / ".resume" / "state.safetensors", "pt") as state:
        assert json.loads(state.metadata()["progress"])["step"] == 6  # saved every third step
        assert all(state.get_tensor(name).isfinite().all() for name in state.keys())  # noqa: SIM118


@pytest.mark.parametrize("at", [STEPS, 6])
def test_weights_that_diverge_in_the_last_step_or_before_a_state_is_saved_are_refused(at, tmp_path, monkeypatch):
    """The loss of the step is finite, its update is not; a state with such weights could not be continued."""
    plain, calls = torch.optim.Adam.step, []

    def step(self, *rest):
        calls.append(1)
        out = plain(self, *rest)
        if len(calls) == at:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")
        return out

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(
        Diverged, match=rf"^the weights are not finite after step {at} of {STEPS}; [^\n]*learning rate$"
    ):
        run("student", tmp_path, save_steps=3)
    assert not (tmp_path / "model.safetensors").exists()
    with safe_open(tmp_path / ".resume" / "state.safetensors", "pt") as state:
        assert json.loads(state.metadata()["progress"])["step"] == (18 if at == STEPS else 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_kill_in_the_middle_of_a_save_costs_only_the_steps_since_the_last(count, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert finish(start(run, "student", alone)) == 0
    assert finish(start(run, "student", killed, dies_in_save=count, save_steps=2)) == KILLED
    folder = killed / ".resume"
    state, partial = folder / "state.safetensors", list(folder.glob(".*.partial*"))
    assert len(partial) == 1  # what was half written lies beside, under another name
    assert state.exists() == (count > 1)
    if state.exists():
        with safe_open(state, "pt") as saved:
            assert json.loads(saved.metadata()["progress"])["step"] == 2 * (count - 1)
    assert run("student", killed)[1] == STEPS - 2 * (count - 1)
    expected, got = load_file(alone / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not folder.exists()
