"""A small AudioSet Strong in the layout of the pipeline: tones in noise, labels as published, a store, a Step 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from framekd.config import LABEL_FILES, Recipe
from framekd.jobs import CheckpointJob, TrainJob
from framekd.labels import known_strong
from framekd.pipeline.checkpoints import make_checkpoints
from framekd.store import StoredClip, write_shard

HEADER = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
CLASSES = 4
SIZES = {"width": 32, "depth": 2, "heads": 2, "rnn_hidden": 16}


def write_audioset(data: Path, *, train: int = 24, evaluation: int = 8) -> dict[str, Any]:
    """Write labels and one shard, and return them as the inputs of a job.

    Each clip of 10 s has two events of 3 s; every class has a pitch of its own.
    """
    rng, names = np.random.default_rng(0), known_strong()[2]
    mids = [mid for mid in known_strong()[0].mids if mid in known_strong()[1].mids][:CLASSES]
    time, stored = np.arange(160_000) / 16_000, []
    lines: dict[str, list[str]] = {"train_strong": [HEADER], "eval_strong": [HEADER]}
    for i in range(train + evaluation):
        name = f"vid_{i:07d}_30000"
        wave = 300 * rng.standard_normal(160_000)
        for c, onset in zip(rng.permutation(CLASSES)[:2], (0.5 + rng.random(), 5.5 + rng.random())):
            here = (time >= onset) & (time < onset + 3)
            wave[here] += 6000 * np.sin(2 * np.pi * 300 * 1.8**c * time[here])
            split = "train_strong" if i < train else "eval_strong"
            lines[split].append(f"{name}\t{onset:.3f}\t{onset + 3:.3f}\t{mids[c]}\n")
        stored.append(StoredClip(name, 30_000, wave.astype(np.int16)))
    (data / "labels").mkdir(parents=True)
    for split, text in lines.items():
        (data / "labels" / LABEL_FILES[split]).write_text("".join(text))
    table = "".join(f"{mid}\t{name}\n" for mid, name in zip(names.mids, names.names))
    (data / "labels" / LABEL_FILES["mid_to_display_name"]).write_text(table)
    write_shard(data / "store" / "0000.h5", stored)
    wanted = ("train_strong", "eval_strong", "mid_to_display_name")
    labels = {name: str(data / "labels" / LABEL_FILES[name]) for name in wanted}
    return {"stores": [str(data / "store" / "0000.h5")], **labels, "rates": [], "soft_labels": []}


def write_weak(data: Path, *, clips: int = 32) -> dict[str, Any]:
    """Write an AudioSet Weak of `clips` clips with one shard, and return it as the inputs of a job of Step 2.

    Each clip has one class, whose pitch sounds all the time.
    """
    rng, time, stored = np.random.default_rng(0), np.arange(160_000) / 16_000, []
    lines = ["# a\n# b\n# YTID, start_seconds, end_seconds, positive_labels\n"]
    for i in range(clips):
        wave = 300 * rng.standard_normal(160_000) + 6000 * np.sin(2 * np.pi * 300 * 1.8 ** (i % CLASSES) * time)
        stored.append(StoredClip(f"weak{i:07d}_30000", 30_000, wave.astype(np.int16)))
        lines.append(f'weak{i:07d}, 30.000, 40.000, "/m/{i % CLASSES}"\n')
    write_shard(data / "weak" / "0000.h5", stored)
    (data / "weak" / "train.csv").write_text("".join(lines))
    rows = "".join(f'{i},/m/{i},"class {i}"\n' for i in range(CLASSES))
    (data / "weak" / "classes.csv").write_text(f"index,mid,display_name\n{rows}")
    files = {"segments": [str(data / "weak" / "train.csv")], "class_labels": str(data / "weak" / "classes.csv")}
    return {"stores": [str(data / "weak" / "0000.h5")], **files, "rates": [], "soft_labels": []}


def write_step1(folder: Path) -> str:
    """A tiny encoder from a seed: the path of its weights."""
    out = folder / "step1" / "tiny" / "model.safetensors"
    job = CheckpointJob(
        version=1, step="step1", models=["tiny"], sizes={"tiny": SIZES}, front_ends={"tiny": {}}, published={}, seed=3
    )
    make_checkpoints(job, weights=[str(out)])
    return str(out)


def train_job(*, seeds: tuple[int, ...] = (1,), missing_clips: str = "refuse", **recipe: Any) -> TrainJob:
    """A short training of the tiny model."""
    values = {"epochs": 2, "epoch_clips": 20, "batch_size": 4, "warmup_steps": 2, "head_init": "prior", **recipe}
    return TrainJob(
        version=1,
        stage="students",
        recipes={"tiny": Recipe(**values)},
        seeds=list(seeds),
        sequence_model=None,
        unrolled_gru=False,
        missing_clips=missing_clips,
    )
