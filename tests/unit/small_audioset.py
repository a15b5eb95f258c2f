"""A small AudioSet Strong in the layout of the pipeline: tones in noise, labels as published, a store, a Step 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from framekd.config import LABEL_FILES, Recipe
from framekd.labels import known_strong
from framekd.pipeline.pretrain import step1
from framekd.store import StoredClip, write_shard

HEADER = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
CLASSES = 4
SIZES = {"width": 32, "depth": 2, "heads": 2, "rnn_hidden": 16}


def write_audioset(data: Path, *, train: int = 24, evaluation: int = 8) -> None:
    """Labels and one shard; each clip of 10 s has two events of 3 s, each of a class with a pitch of its own."""
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


def write_step1(folder: Path) -> str:
    """A tiny encoder from a seed: the path of its weights."""
    out = folder / "step1" / "tiny" / "model.safetensors"
    step1("tiny", {"seed": 3, "sizes": SIZES}, downloads="none", out=str(out))
    return str(out)


def block(**recipe) -> dict:
    """What a training of the graph is told."""
    values = {"epochs": 2, "epoch_clips": 20, "batch_size": 4, "warmup_steps": 2, "head_init": "prior", **recipe}
    return {"version": 1, "sequence_model": None, "recipe": Recipe(**values).model_dump(mode="json")}
