"""What is finished stays, whatever becomes of its job; and a training that fails costs only itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_audioset import train_job, write_audioset, write_step1

from framekd.config import UserError, load
from framekd.graph import Graph
from framekd.pipeline.kept import each, give_back, keep, key
from framekd.pipeline.partial import write_config
from framekd.pipeline.second_pass import broken_packs, second_pass
from framekd.pipeline.train import train_strong
from framekd.train import Stopped

NAMES = ("model.safetensors", "spec.json", "history.jsonl")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audioset")
    start = write_step1(folder)
    yield {**write_audioset(folder / "data", train=8, evaluation=2), "weights": [start, start]}
    torch.set_num_threads(threads)


def pack(rate: float, **keys):
    """A job of two models with two seeds each; the second model has its own learning rate."""
    job = train_job(seeds=(1, 2), epochs=3, epoch_clips=8, learning_rate=1e-3, **keys)
    recipe = job.recipes["tiny"]
    return job.model_copy(update={"recipes": {"tiny": recipe, "b": recipe.model_copy(update={"learning_rate": rate})}})


def outputs(folder: Path) -> list[str]:
    return [str(folder / f"{name}{seed}" / NAMES[0]) for name in ("tiny", "b") for seed in (1, 2)]


def remove_outputs(folder: Path) -> None:
    """Remove all declared outputs, as Snakemake does after a job that fails."""
    for path in map(Path, outputs(folder)):
        for name in NAMES:
            (path.parent / name).unlink(missing_ok=True)


def test_a_training_that_diverges_costs_only_itself(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("framekd.config.recipe.LARGEST_RATE", 1e31)
    said = r"2 of 4 failed; the others are finished and kept: b seed 1: the loss is nan at .*; b seed 2: "
    with pytest.raises(UserError, match=said):
        train_strong(pack(1e30), inputs=inputs, weights=outputs(tmp_path))
    before = [(tmp_path / "tiny1" / name).read_bytes() for name in NAMES]
    remove_outputs(tmp_path)
    capsys.readouterr()
    train_strong(pack(1e-3), inputs=inputs, weights=outputs(tmp_path))
    given = [line for line in capsys.readouterr().out.splitlines() if "was finished before" in line]
    assert [line.split(":")[0] for line in given] == [str(tmp_path / name) for name in ("tiny1", "tiny2")]
    assert [(tmp_path / "tiny1" / name).read_bytes() for name in NAMES] == before
    assert all(Path(path).is_file() for path in outputs(tmp_path))
    assert not [*tmp_path.rglob(".resume")]


CHILD = """
import sys, os, signal, pickle
from framekd.pipeline.train import train_strong
from framekd.train.state import RunFolder
RunFolder.remove = lambda self: os.kill(os.getpid(), signal.SIGKILL)
job, inputs, weights = pickle.loads(sys.stdin.buffer.read())
train_strong(job, inputs=inputs, weights=weights)
"""


def test_a_kill_just_after_the_end_of_a_training_loses_nothing(inputs, tmp_path, capsys):
    import pickle

    job = train_job(epochs=1, epoch_clips=8)
    given = {"inputs": {**inputs, "weights": inputs["weights"][:1]}, "weights": [str(tmp_path / "a" / NAMES[0])]}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps((job, *given.values())), capture_output=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    before = (tmp_path / "a" / NAMES[0]).read_bytes()
    for name in NAMES:
        (tmp_path / "a" / name).unlink()
    train_strong(job, **given)
    assert "was finished before" in capsys.readouterr().out
    assert (tmp_path / "a" / NAMES[0]).read_bytes() == before


def test_what_a_result_depends_on_decides_whether_it_is_given_back(inputs, tmp_path):
    job = pack(1e-3)
    recipe = job.recipes["tiny"]
    own = {**inputs, "weights": inputs["weights"][:1], "coverage": ["no such file"]}

    def name(job=job, inputs=own, recipe=recipe, seed=1):
        return key(job, inputs, recipes=recipe, seed=seed)

    # another packing, and what cannot change a result, do not count
    alone = job.model_copy(update={"recipes": {"tiny": recipe}, "seeds": [1], "watch_median_seconds": 1.0})
    assert name(alone) == name()
    changed = tmp_path / "labels.tsv"
    changed.write_bytes(Path(inputs["train_strong"]).read_bytes() + b"\n")
    copied = tmp_path / "same.tsv"
    copied.write_bytes(Path(inputs["train_strong"]).read_bytes())
    assert name(inputs={**own, "train_strong": str(copied)}) == name()
    others = [
        name(job.model_copy(update={"version": 2})),
        name(job.model_copy(update={"sequence_model": "bigru"})),
        name(recipe=recipe.model_copy(update={"epochs": 4})),
        name(seed=2),
        name(inputs={**own, "train_strong": str(changed)}),
    ]
    assert len({*others, name()}) == len(others) + 1


def test_files_are_kept_by_link_and_those_of_another_key_are_removed(tmp_path):
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file in files:
        file.write_text(file.name)
    keep(files, "one")
    kept = tmp_path / ".finished" / "a"
    assert files[0].stat().st_ino == (kept / "a.csv").stat().st_ino
    files[0].unlink()
    assert give_back(files, "one") and files[0].read_text() == "a.csv"
    (kept / "b.csv").unlink()
    assert not give_back(files, "one") and not kept.exists()
    keep(files, "one")
    assert not give_back(files, "two") and not kept.exists()


def test_a_signal_ends_the_job_at_once_and_the_sentence_of_a_single_piece_is_its_own(capsys):
    done = []

    def fail():
        raise ZeroDivisionError("no way")

    with pytest.raises(Stopped, match="SIGTERM came at the end of a training"):
        each([("a", lambda: done.append("a") or "SIGTERM"), ("b", lambda: done.append("b"))])
    with pytest.raises(ZeroDivisionError):
        each([("a", fail)])
    with pytest.raises(UserError, match=r"^2 of 2 failed: a: no way; b: no way$"):
        each([("a", fail), ("b", fail)])
    assert done == ["a"] and "ZeroDivisionError: no way" in capsys.readouterr().err


def test_a_second_pass_is_for_packs_that_were_killed_or_of_which_some_trainings_are_finished(tmp_path, monkeypatch):
    graph = Graph(load({"results_dir": str(tmp_path)}))
    logs = {
        "students/proposed/pack1/seed1": "framekd: 1 of 4 failed; the others are finished and kept: b: too large\n",
        "students/proposed/pack2/seed1": "framekd: 4 of 4 failed: b: too large\n",
        "students/proposed/pack3/seed1": "killed while it trained\n",
        "students/proposed/ATST-F/seed1_2": "killed while it trained\n",
        "students/proposed/ATST-F/seed3": "killed while it trained, but alone\n",
        "students/proposed/pack4/seed1": "Traceback (most recent call last):\nImportError: no torch\n",
        "teachers/proposed/pack1/seed1": "framekd: 1 of 4 failed; the others are finished and kept: a run before\n",
    }
    for name, text in logs.items():
        path = tmp_path / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name.startswith("teachers"):
            os.utime(path, (1, 1))
    write_config(graph)
    os.utime(tmp_path / "config.json", (2, 2))
    found = [str(path.relative_to(tmp_path / "logs/students/proposed")) for path in broken_packs(graph)]
    assert found == ["ATST-F/seed1_2.log", "pack1/seed1.log", "pack3/seed1.log"]
    assert not second_pass(graph, stopped=True, arguments=["all"])
    assert not second_pass(graph, stopped=False, arguments=["all", "--forceall"])
    monkeypatch.setenv("FRAMEKD_ONE_BY_ONE", "1")
    assert not second_pass(graph, stopped=False, arguments=["all"])
