"""Small data sets in the layouts of DESED and of HEAR's prepared tasks: tones over noise, one pitch a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from framekd.config import HeadRecipe, Task, TaskSearch, TrainRecipe
from framekd.data import clip_set
from framekd.labels import ClassList
from framekd.tasks import frozen, transfer
from framekd.tasks.problem import Part, Problem, Run

RATE = 16_000
CLASSES = ("Blender", "Cat", "Dishes", "Dog")
CPU = torch.device("cpu")
SHORT = dict(epochs=2, epoch_clips=8, batch_size=4, learning_rate=0.01, warmup_steps=1)
QUICK = {"frozen": HeadRecipe(**SHORT), "finetune": TrainRecipe(**SHORT)}
RATES = [1e-9, 0.1, 0.05]
SEARCHED = {
    "frozen": HeadRecipe(**{**SHORT, "epochs": 20, "learning_rate": "search"}, random_crop=False),
    "finetune": TrainRecipe(**{**SHORT, "learning_rate": "search"}),
    "search": TaskSearch(frozen=RATES, finetune=[1e-9, 0.02], share=0.25),
}


def tone_file(path: Path, draw: np.random.Generator, *, seconds: float, events: int, classes: int = len(CLASSES),
              rate: int = RATE) -> list[tuple[float, float, int]]:  # fmt: skip
    """Write a file of tones over noise; returns their (onset, offset, class), on whole milliseconds."""
    wave = 0.01 * draw.standard_normal(int(seconds * rate))
    rows = []
    for k in range(events):
        slot = seconds / events
        on = round(slot * k + draw.uniform(0.05, 0.4) * slot, 3)
        off = round(on + draw.uniform(0.3, 0.5) * slot, 3)
        label = int(draw.integers(classes))
        time = np.arange(int(on * rate), int(off * rate)) / rate
        wave[int(on * rate) : int(off * rate)] += 0.3 * np.sin(2 * np.pi * 400 * 2**label * time)
        rows.append((on, off, label))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype="PCM_16")
    return rows


def write_hear(root: Path, splits: dict[str, int], *, seconds: float = 25.0, events: int = 20, seed: int = 0) -> Path:
    """HEAR's layout: labelvocabulary.csv, <split>.json, 16000/<split>/*.wav."""
    draw = np.random.default_rng(seed)
    root.mkdir(parents=True)
    (root / "labelvocabulary.csv").write_text("idx,label\n" + "".join(f"{i},{60 + i}\n" for i in range(len(CLASSES))))
    for split, count in splits.items():
        content = {}
        for k in range(count):
            name = f"{split}_{k}.wav"
            rows = tone_file(root / "16000" / split / name, draw, seconds=seconds, events=events)
            content[name] = [{"label": str(60 + c), "start": a * 1000, "end": b * 1000} for a, b, c in rows]
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def write_desed(root: Path, *, weak: int = 12, synthetic: int = 16, validation: int = 10, seed: int = 0) -> Path:
    """DESED's layout: metadata/…/*.tsv and audio/…/*.wav."""
    draw = np.random.default_rng(seed)
    strong = "filename\tonset\toffset\tevent_label\n"
    places = {"synthetic": "train/synthetic21_train/soundscapes", "validation": "validation/validation"}
    for (kind, place), count in zip(places.items(), (synthetic, validation)):
        lines = [strong]
        for k in range(count):
            name = f"{kind}_{k}.wav"
            for a, b, c in tone_file(root / "audio" / place / name, draw, seconds=10, events=5):
                lines.append(f"{name}\t{a:.3f}\t{b:.3f}\t{CLASSES[c]}\n")
        tsv = root / "metadata" / f"{place}.tsv"
        tsv.parent.mkdir(parents=True, exist_ok=True)
        tsv.write_text("".join(lines))
    lines = ["filename\tevent_labels\n"]
    for k in range(weak):
        rows = tone_file(root / "audio" / "train" / "weak" / f"w{k}.wav", draw, seconds=10, events=2)
        lines.append(f"w{k}.wav\t{','.join(sorted({CLASSES[c] for _, _, c in rows}))}\n")
    (root / "metadata" / "train" / "weak.tsv").write_text("".join(lines))
    return root


def toy_crops(parts: int = 1, *, width: int = 6, n_classes: int = 3, count: int = 10, seed: int = 0):
    """Random features with labels, two runs over them, and the problem that they make."""
    draw = torch.Generator().manual_seed(seed)
    crops, pools = {}, {}
    for name in ("strong", "weak")[:parts]:
        features = torch.randn(count, 250, width, generator=draw)
        truth = (features[..., :n_classes] > 0.5).float().transpose(1, 2)
        weak = (truth.mean(2) > 0.3).float()
        clips, start = np.arange(count), np.zeros(count, int)
        labels = truth if name == "strong" else None
        crops[name] = frozen.Crops(clips, start, features.half(), labels, weak)
        columns = (np.zeros(0, int),) * 2 + (np.zeros(0),) * 2
        pools[name] = clip_set(
            [f"{name}{i}" for i in range(count)], None, ClassList.of("abc"), samples=np.full(count, 160_000),
            events=columns,
        )  # fmt: skip
    half = np.arange(count // 2)
    runs = []
    for k, seed in enumerate((1, 2)):
        train = tuple(Part(name, half + k * (count // 2)) for name in crops)
        runs.append(Run(str(seed), seed, train, Part("strong", half)))
    objective = "both" if parts == 2 else "strong"
    return crops, Problem("DESED", ClassList.of("abc"), pools, tuple(runs), objective, lambda _: {})


def task(folder: Path, **values: Any) -> Task:
    """The options of a task with a search in both modes and two seeds; `values` change them."""
    return Task(data=str(folder), **{**SEARCHED, "seeds": [1, 2], **values})


def choices(out: Path) -> list[dict[str, Any]]:
    """The rates that a job tried, from the file beside its table."""
    return json.loads(transfer.candidates_file(out).read_text())
