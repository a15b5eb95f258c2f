"""Miniatures of downstream sets in the layout and form of the real ones: DESED, and DCASE 2016 Task 2 (HEAR)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from scipy.signal import resample_poly

from framekd.miniature.recordings import SAMPLE_RATE, Pool, load_library
from framekd.miniature.scenes import Placed, Scene, clip_sizes, deal_classes, ground, lay, mix, take

HEAR_RATE = 48_000
HEAR_SECONDS = 120
# DESED: ten domestic sounds. Here: ten classes of ours under names of that kind (commas separate its lists).
DESED_CLASSES = {
    "Beep": "Beep, bleep",
    "Bell": "Bell",
    "Bird": "Bird vocalization, bird call, bird song",
    "Bleat": "Bleat",
    "Fire": "Fire",
    "Footsteps": "Walk, footsteps",
    "Laughter": "Laughter",
    "Moo": "Moo",
    "Running_water": "Stream, river",
    "Speech": "Speech",
}
# DCASE 2016 Task 2: eleven short sounds of an office. Here: eleven short sounds.
DCASE16_CLASSES = {
    "beep": "Beep, bleep",
    "bell": "Bell",
    "door": "Door",
    "explosion": "Explosion",
    "glass": "Glass",
    "laughter": "Laughter",
    "plop": "Plop",
    "scream": "Screaming",
    "snap": "Finger snapping",
    "speech": "Speech",
    "whoosh": "Whoosh, swoosh, swish",
}


def _pools(recordings_dir: str | Path, seed: int, names: dict[str, str]) -> dict[str, Pool]:
    """The pools of the splits, with the classes of a task under its own names."""
    return {
        split: Pool({own: pool.events[label] for own, label in names.items()}, pool.backgrounds)
        for split, pool in load_library(recordings_dir).split(seed).items()
    }


def write_text(path: Path, text: str) -> None:
    """Write a file aside and put it into its place."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)


def write_wav(path: Path, samples: Float[np.ndarray, " samples"], *, rate: int = SAMPLE_RATE) -> None:
    """Write mono audio given at 16 kHz as a 16-bit wav at `rate`."""
    if rate != SAMPLE_RATE:
        samples = np.clip(resample_poly(samples, rate // SAMPLE_RATE, 1), -1, 1)
    soundfile.write(path, samples, rate, subtype="PCM_16", format="WAV")


def build_desed(
    directory: str | Path,
    *,
    seed: int,
    n_weak: int = 60,
    n_synthetic: int = 100,
    n_validation: int = 60,
    recordings_dir: str | Path = "miniature",
) -> dict[str, Any]:
    """Build a miniature DESED in its layout: ``metadata/…`` (TSVs, durations) and ``audio/…`` (10 s, 16 kHz, mono).

    Ten classes; training clips are made of training sources, validation clips of evaluation sources (those that the
    miniature AudioSet evaluates on with the same seed). Returns the content of summary.json.
    """
    directory = Path(directory)
    pools = _pools(recordings_dir, seed, DESED_CLASSES)
    parts = {
        "weak": ("audio/train/weak", n_weak, pools["weak"], 10),
        "synthetic": ("audio/train/synthetic21_train/soundscapes", n_synthetic, pools["weak"], 11),
        "validation": ("audio/validation/validation", n_validation, pools["eval"], 12),
    }
    found: dict[str, dict[str, Scene]] = {}
    for name, (folder, count, pool, stream) in parts.items():
        (directory / folder).mkdir(parents=True, exist_ok=True)
        found[name] = {}
        for file, scene in _desed_clips(name, count, pool, seed, stream):
            write_wav(directory / folder / file, scene.samples)
            found[name][file] = scene
    train, validation = directory / "metadata/train", directory / "metadata/validation"
    (train / "synthetic21_train").mkdir(parents=True, exist_ok=True)
    validation.mkdir(parents=True, exist_ok=True)
    weak = [(file, ",".join(sorted({e[0] for e in scene.events}))) for file, scene in found["weak"].items()]
    write_text(train / "weak.tsv", _tsv(("filename", "event_labels"), weak))
    write_text(train / "synthetic21_train/soundscapes.tsv", _events_tsv(found["synthetic"]))
    write_text(validation / "validation.tsv", _events_tsv(found["validation"]))
    durations = [(file, f"{len(scene.samples) / SAMPLE_RATE:.1f}") for file, scene in found["validation"].items()]
    write_text(validation / "validation_durations.tsv", _tsv(("filename", "duration"), durations))
    events = {
        name: dict(sorted(Counter(e[0] for scene in scenes.values() for e in scene.events).items()))
        for name, scenes in found.items()
    }
    summary = {"seed": seed, "clips": {name: len(scenes) for name, scenes in found.items()}, "events": events}
    write_text(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _desed_clips(name: str, count: int, pool: Pool, seed: int, stream: int) -> list[tuple[str, Scene]]:
    rng = np.random.default_rng([seed, stream])
    classes = sorted(pool.events)
    sizes = clip_sizes(count, rng)
    # Speech leads in DESED by far; the others are about as frequent as each other.
    weights = [3.0 if label == "Speech" else 1.0 for label in classes]
    clips = []
    for number, labels in enumerate(deal_classes(classes, weights, sizes, rng)):
        own = np.random.default_rng([seed, stream, number])
        bed = ground(pool.backgrounds, 10 * SAMPLE_RATE, own)
        scene = mix(lay(labels, pool, own, window=(0.1, 9.9)), bed, own)
        start = 10 * int(own.integers(1, 40))
        video = f"Y{name[0]}{seed % 1000:03d}mini{number:04d}"
        file = f"{number}.wav" if name == "synthetic" else f"{video}_{start:.3f}_{start + 10:.3f}.wav"
        clips.append((file, scene))
    return clips


def _tsv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [header, *rows])


def _events_tsv(scenes: dict[str, Scene]) -> str:
    rows = [
        (file, f"{onset:.3f}", f"{offset:.3f}", label)
        for file, scene in scenes.items()
        for label, onset, offset in scene.events
    ]
    return _tsv(("filename", "onset", "offset", "event_label"), rows)


def build_dcase16(
    directory: str | Path, *, seed: int, n_files: int = 10, recordings_dir: str | Path = "miniature"
) -> dict[str, Any]:
    """Build a miniature DCASE 2016 Task 2 as HEAR prepares it: 120-s files at 48 kHz, a JSON a split, 11 classes.

    The original's design: 2 to 4 events of each class in a file, at one event-to-background ratio (0, 6 or 12 dB here),
    one after the other (poly 0) or anywhere (poly 1). Files are split 60/20/20; test files are made of evaluation
    sources. Returns the content of summary.json.
    """
    directory = Path(directory)
    pools = _pools(recordings_dir, seed, DCASE16_CLASSES)
    n_test = n_valid = max(1, n_files // 5)
    counts = {"train": n_files - n_test - n_valid, "valid": n_valid, "test": n_test}
    if counts["train"] < 1:
        raise ValueError(f"{n_files} files cannot be split in three; at least 3 are needed")
    splits: dict[str, dict[str, Scene]] = {}
    number = 0
    for split, count in counts.items():
        folder = directory / str(HEAR_RATE) / split
        folder.mkdir(parents=True, exist_ok=True)
        splits[split] = {}
        for _ in range(count):
            ebr, nec, poly = (0, 6, 12)[number % 3], (2, 3, 4)[(number // 2) % 3], number % 2
            scene = _office(pools["eval" if split == "test" else "weak"], ebr, nec, poly, [seed, 20, number])
            name = f"{'test' if split == 'test' else 'dev'}_{number + 1}_ebr_{ebr}_nec_{nec}_poly_{poly}.wav"
            write_wav(folder / name, scene.samples, rate=HEAR_RATE)
            splits[split][name] = scene
            number += 1
    return write_hear(directory, splits, sorted(DCASE16_CLASSES), seed=seed, task="dcase2016_task2")


def _office(pool: Pool, ebr: float, nec: int, poly: int, entropy: list[int]) -> Scene:
    rng = np.random.default_rng(entropy)
    order = list(np.repeat(sorted(pool.events), nec))
    rng.shuffle(order)
    slot = (HEAR_SECONDS - 1.0) / len(order)
    placed = []
    for k, label in enumerate(order):
        samples = take(pool, str(label), rng)
        if poly == 0:
            samples = samples[: round((slot - 0.2) * SAMPLE_RATE)]
            slack = slot - 0.2 - len(samples) / SAMPLE_RATE
            at = 0.5 + k * slot + rng.uniform(0, max(slack, 0.0))
        else:
            at = rng.uniform(0.5, HEAR_SECONDS - 0.5 - len(samples) / SAMPLE_RATE)
        placed.append(Placed(str(label), round(at * SAMPLE_RATE), samples))
    bed = ground(pool.backgrounds, HEAR_SECONDS * SAMPLE_RATE, rng)
    return mix(placed, bed, rng, snr_db=(ebr, ebr))


def write_hear(
    directory: Path, splits: dict[str, dict[str, Scene]], labels: Sequence[str], *, seed: int, task: str
) -> dict[str, Any]:
    """Write HEAR's ``{split}.json`` (ms), labelvocabulary.csv and task_metadata.json, and summary.json."""
    for split, scenes in splits.items():
        content = {
            name: [
                {"label": label, "start": round(onset * 1000, 3), "end": round(offset * 1000, 3)}
                for label, onset, offset in scene.events
            ]
            for name, scene in scenes.items()
        }
        write_text(directory / f"{split}.json", json.dumps(content, indent=1) + "\n")
    rows = "".join(f"{k},{label}\n" for k, label in enumerate(labels))
    write_text(directory / "labelvocabulary.csv", "idx,label\n" + rows)
    about = {
        "task_name": task,
        "version": "miniature",
        "embedding_type": "event",
        "prediction_type": "multilabel",
        "split_mode": "new_split_kfold" if "fold00" in splits else "presplit_kfold",
        "sample_duration": float(HEAR_SECONDS),
        "splits": list(splits),
        "evaluation": ["event_onset_50ms_fms"],
    }
    write_text(directory / "task_metadata.json", json.dumps(about, indent=1) + "\n")
    events = {split: sum(len(scene.events) for scene in scenes.values()) for split, scenes in splits.items()}
    summary = {"seed": seed, "files": {split: len(s) for split, s in splits.items()}, "events": events}
    write_text(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary
