"""A further task of Table II: a folder and a block in the configuration."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml

from framekd import tables, tasks
from framekd.checkpoints import save_checkpoint
from framekd.checks import problems
from framekd.config import OwnTask, UserError, load, read_sources
from framekd.graph import Graph
from framekd.models import build_model

DOCS = Path(__file__).parents[2] / "docs" / "downstream.md"
RATE = 16_000


def example() -> dict:
    """The block that the docs show."""
    section = DOCS.read_text().split("## A task of your own")[1]
    found = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """Two classes of tones in noise, in train.tsv and test.tsv, and their recordings of 8 and 14 s."""
    root, draw = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        rows = ["filename\tonset\toffset\tevent_label"]
        for number in range(count):
            seconds = (8, 14)[number % 2]
            samples = 0.01 * draw.standard_normal(seconds * RATE)
            for place, (label, pitch) in enumerate((("high", 3000), ("low", 400))):
                onset = float(draw.uniform(0.5, seconds / 2 - 2)) + place * seconds / 2
                span = slice(int(onset * RATE), int((onset + 1.5) * RATE))
                samples[span] += 0.4 * np.sin(2 * np.pi * pitch * np.arange(span.stop - span.start) / RATE)
                rows.append(f"{split}{number}.wav\t{onset:.3f}\t{onset + 1.5:.3f}\t{label}")
            (root / "audio").mkdir(exist_ok=True)
            soundfile.write(root / "audio" / f"{split}{number}.wav", samples.astype(np.float32), RATE)
        (root / f"{split}.tsv").write_text("\n".join([*rows, ""]))
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model("tiny", n_classes=2).init_weights(torch.Generator().manual_seed(3))
    save_checkpoint(folder, model, classes=["a", "b"], provenance={})
    return folder


@pytest.mark.parametrize("metric", ["psds1", "onset_f"])
def test_it_is_learnt_scored_and_a_column_of_table_2(birds, checkpoint, tmp_path, metric):
    values = example()
    name = next(iter(values["downstream"]["tasks"]))
    short = {"epoch_clips": 16, "batch_size": 4, "warmup_steps": 2}
    values["downstream"]["tasks"][name] |= {
        **{"data": str(birds), "metric": metric, "seeds": [1, 2]},
        "frozen": {**short, "epochs": 60, "learning_rate": 0.1},
        "finetune": {**short, "epochs": 1, "learning_rate": 0.001},
    }
    options = load(values).downstream.named[name]
    out = tmp_path / "step1.csv"
    tasks.run(name, options, "tiny", checkpoint, checkpoint="step1", out_csv=out)
    rows = pd.read_csv(out)
    assert list(zip(rows["mode"], rows["seed"])) == [(m, s) for m in ("frozen", "finetune") for s in (1, 2)]
    assert rows.loc[rows["mode"] == "frozen", "value"].min() > 0.3, "tones are easy"
    assert (metric == "psds1") == ("psds1_without_penalty" in rows)
    frame = tables.write_table("table2", [out], tmp_path / "table2.csv")
    cell = frame[(frame["task"] == name) & (frame["mode"] == "frozen") & (frame["model"] == "tiny")].iloc[0]
    assert cell["mean"] == pytest.approx(100 * rows["value"][:2].mean(), abs=1e-3) and np.isnan(cell["published"])
    printed = (tmp_path / "table2.md").read_text()
    assert f"frozen {name}" in printed and f"{name}: {tables.OWN_SCORES[metric == 'psds1']}" in printed


def test_the_graph_has_its_jobs_and_a_dropped_task_has_none(birds, tmp_path):
    values = example()
    name = next(iter(values["downstream"]["tasks"]))
    values["downstream"] |= {"DESED": None, "MAESTRO": None, "fetch": {"DC16-T2": None}}
    values["downstream"]["tasks"][name]["data"] = str(birds)
    config = load(values)
    graph = Graph(config)
    assert graph.tasks == ["DC16-T2", name]
    assert len(graph.downstream) == 2 * 5 * 3 and graph.miniature(name) == []
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    keys = [p.key for p in problems(config, read_sources([path])[1], targets=["table2"])]
    assert keys == ["downstream.DC16-T2.data"]
    values["downstream"]["tasks"][name]["data"] = "gone"
    path.write_text(yaml.safe_dump(values))
    found = problems(load(values), read_sources([path])[1], targets=["table2"])
    assert [p.key for p in found] == ["downstream.DC16-T2.data", f"downstream.tasks.{name}.data"]
    assert "mine.yaml" in str(found[-1].place)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"DESED": {"data": "x"}}, ["DESED", "another name"]),
        ({"a/b": {"data": "x"}}, ["a/b"]),
        ({"birds": {"data": "x", "metric": "accuracy"}}, ["downstream.tasks.birds.metric", "psds1"]),
        ({"birds": {"data": "x", "frozen": {"ema": 0.9}}}, ["downstream.tasks.birds.frozen.ema"]),
    ],
)
def test_mistakes_in_the_block_are_one_sentence(block, words):
    with pytest.raises(UserError) as caught:
        load({"downstream": {"tasks": block}})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "test.tsv").unlink(), ["test.tsv", "no such table"]),
        (lambda root: (root / "audio" / "train1.wav").unlink(), ["1 of 6 files", "train1.wav"]),
        (
            lambda root: (root / "test.tsv").write_text((root / "train.tsv").read_text()),
            ["6 of 6 files are in train.tsv too"],
        ),
        (
            lambda root: (root / "test.tsv").write_text((root / "test.tsv").read_text().replace("high", "hihg")),
            ["test.tsv", "hihg"],
        ),
        (
            lambda root: (root / "train.tsv").write_text("filename\tevent_labels\ntrain0.wav\tlow\n"),
            ["events with times"],
        ),
    ],
)
def test_mistakes_in_the_folder_are_one_sentence(birds, tmp_path, change, words):
    root = tmp_path / "birds"
    shutil.copytree(birds, root, ignore=shutil.ignore_patterns("cache*"))
    change(root)
    with pytest.raises(UserError) as caught:
        tasks.load("birds", OwnTask(data=str(root)))
    assert all(word in str(caught.value) for word in words), str(caught.value)
