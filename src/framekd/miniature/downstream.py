"""Miniatures of the downstream data sets in their real layouts: DESED, DCASE 2016 Task 2 and MAESTRO (HEAR)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float
from scipy.signal import resample_poly

from framekd.files import replacing, write_json, write_text
from framekd.miniature.scenes import (
    ANNOTATED_PAUSE,
    Placed,
    Pool,
    Recording,
    Scene,
    clip_sizes,
    deal_classes,
    ground,
    lay,
    load_library,
    mix,
    take,
)
from framekd.units import SAMPLE_RATE

HEAR_RATE = 48_000
HEAR_SECONDS = 120
# Ten of our classes in place of DESED's domestic sounds; names without commas, which separate labels in its lists.
DESED_CLASSES = {
    "Bell": "Bell",
    "Bird": "Bird vocalization, bird call, bird song",
    "Bleat": "Bleat",
    "Cricket": "Cricket",
    "Fire": "Fire",
    "Footsteps": "Walk, footsteps",
    "Laughter": "Laughter",
    "Moo": "Moo",
    "Running_water": "Stream, river",
    "Speech": "Speech",
}
# Eleven of our shorter sounds in place of the office sounds of DCASE 2016 Task 2.
DCASE16_CLASSES = {
    "bell": "Bell",
    "bird": "Bird vocalization, bird call, bird song",
    "bleat": "Bleat",
    "clop": "Clip-clop",
    "door": "Door",
    "explosion": "Explosion",
    "laughter": "Laughter",
    "moo": "Moo",
    "neigh": "Neigh, whinny",
    "scream": "Screaming",
    "speech": "Speech",
}

PITCHES = range(21, 109)
"""MIDI numbers of the 88 keys: the classes of MAESTRO, whatever range is played."""
_LONGEST = 2.5  # s
_DAMPER = 0.05  # s from release to silence


def _pools(recordings_dir: str | Path, seed: int, names: dict[str, str]) -> tuple[Pool, Pool]:
    """Pools for training and for evaluation clips, with the class names of a task: {name: class of ours}.

    Both have the training sources, as the subset "heard" of the miniature AudioSet; evaluation takes vary little.
    """
    weak = load_library(recordings_dir).split(seed)["weak"]
    events = {own: weak.events[label] for own, label in names.items()}
    return Pool(events, weak.backgrounds, speed=weak.speed, tilt=weak.tilt), Pool(events, weak.backgrounds)


def write_wav(path: Path, samples: Float[np.ndarray, " samples"], *, rate: int = SAMPLE_RATE) -> None:
    """Write mono audio given at 16 kHz as a 16-bit wav at `rate`."""
    if rate != SAMPLE_RATE:
        samples = np.clip(resample_poly(samples, rate // SAMPLE_RATE, 1), -1, 1)
    with replacing(path) as aside:
        soundfile.write(aside, samples, rate, subtype="PCM_16", format="WAV")


def build_desed(
    directory: str | Path,
    *,
    seed: int,
    n_weak: int = 60,
    n_synthetic: int = 100,
    n_judging: int = 12,
    n_validation: int = 60,
    recordings_dir: str | Path = "miniature",
) -> dict[str, Any]:
    """Build a miniature DESED in its layout: ``metadata/…`` (TSVs, durations) and ``audio/…`` (10 s, 16 kHz, mono).

    Validation clips are new mixtures of the training sources. So are the synthetic clips on which learning rates are
    judged (`n_judging`). Returns the content of summary.json.
    """
    directory = Path(directory)
    train_pool, evaluation = _pools(recordings_dir, seed, DESED_CLASSES)
    parts = {
        "weak": ("audio/train/weak", n_weak, train_pool, 10),
        "synthetic": ("audio/train/synthetic21_train/soundscapes", n_synthetic, train_pool, 11),
        "judging": ("audio/validation/synthetic21_validation/soundscapes", n_judging, evaluation, 13),
        "validation": ("audio/validation/validation", n_validation, evaluation, 12),
    }
    found: dict[str, dict[str, Scene]] = {}
    for name, (folder, count, pool, stream) in parts.items():
        found[name] = {}
        for file, scene in _desed_clips(name, count, pool, seed, stream):
            write_wav(directory / folder / file, scene.samples)
            found[name][file] = scene
    train, validation = directory / "metadata/train", directory / "metadata/validation"
    weak = [(file, ",".join(sorted({e[0] for e in scene.events}))) for file, scene in found["weak"].items()]
    write_text(train / "weak.tsv", _tsv(("filename", "event_labels"), weak))
    write_text(train / "synthetic21_train/soundscapes.tsv", _events_tsv(found["synthetic"]))
    write_text(validation / "synthetic21_validation/soundscapes.tsv", _events_tsv(found["judging"]))
    write_text(validation / "validation.tsv", _events_tsv(found["validation"]))
    durations = [(file, f"{len(scene.samples) / SAMPLE_RATE:.1f}") for file, scene in found["validation"].items()]
    write_text(validation / "validation_durations.tsv", _tsv(("filename", "duration"), durations))
    events = {
        name: dict(sorted(Counter(e[0] for scene in scenes.values() for e in scene.events).items()))
        for name, scenes in found.items()
    }
    summary = {"seed": seed, "clips": {name: len(scenes) for name, scenes in found.items()}, "events": events}
    write_json(directory / "summary.json", summary)
    return summary


def _desed_clips(name: str, count: int, pool: Pool, seed: int, stream: int) -> list[tuple[str, Scene]]:
    rng = np.random.default_rng([seed, stream])
    classes = sorted(pool.events)
    sizes = clip_sizes(count, rng)
    # Speech is by far the most frequent class of DESED; the others are about equally frequent.
    weights = [3.0 if label == "Speech" else 1.0 for label in classes]
    clips = []
    for number, labels in enumerate(deal_classes(classes, weights, sizes, rng)):
        own = np.random.default_rng([seed, stream, number])
        bed = ground(pool.backgrounds, 10 * SAMPLE_RATE, own)
        scene = mix(lay(labels, pool, own, window=(0.1, 9.9)), bed, own, pause=ANNOTATED_PAUSE)
        start = 10 * int(own.integers(1, 40))
        video = f"Y{name[0]}{seed % 1000:03d}mini{number:04d}"
        file = f"{number}.wav" if name in ("synthetic", "judging") else f"{video}_{start:.3f}_{start + 10:.3f}.wav"
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
    """Build a miniature DCASE 2016 Task 2 as HEAR prepares it: 120-s files at 48 kHz, one JSON per split, 11 classes.

    As in the original, a file has 2 to 4 events of each class at one event-to-background ratio (here 0, 6 or 12 dB),
    without overlap (poly 0) or anywhere (poly 1). Files are split 60/20/20; test files are new mixtures of the training
    sources.
    Returns the content of summary.json.
    """
    directory = Path(directory)
    train_pool, evaluation = _pools(recordings_dir, seed, DCASE16_CLASSES)
    n_test = n_valid = max(1, n_files // 5)
    counts = {"train": n_files - n_test - n_valid, "valid": n_valid, "test": n_test}
    if counts["train"] < 1:
        raise ValueError(f"{n_files} files cannot be split into three; at least 3 are needed")
    splits: dict[str, dict[str, Scene]] = {}
    number = 0
    for split, count in counts.items():
        folder = directory / str(HEAR_RATE) / split
        splits[split] = {}
        for _ in range(count):
            ebr, nec, poly = (0, 6, 12)[number % 3], (2, 3, 4)[(number // 2) % 3], number % 2
            scene = _office(evaluation if split == "test" else train_pool, ebr, nec, poly, [seed, 20, number])
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
        write_json(directory / f"{split}.json", content)
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
    write_json(directory / "task_metadata.json", about)
    events = {split: sum(len(scene.events) for scene in scenes.values()) for split, scenes in splits.items()}
    summary = {"seed": seed, "files": {split: len(s) for split, s in splits.items()}, "events": events}
    write_json(directory / "summary.json", summary)
    return summary


# -- MAESTRO ---------------------------------------------------------------------------------------------------------
# No recordings of single piano notes under a suitable licence were found, so notes are made by additive synthesis:
# partials a little sharper than harmonic (stiff strings), higher ones weaker and shorter, low notes ringing longer, a
# knock at the onset, a damper at the end. Room noise is a real background.


def tone(
    pitch: int, *, brightness: float, stretch: float, ring: float, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """A struck string of MIDI number `pitch` that rings for 2.5 s, at unit peak.

    Args:
        brightness: exponent with which the partials decrease; larger is duller.
        stretch: inharmonicity coefficient B in ``f_k = k f_0 sqrt(1 + B k²)``.
        ring: factor on the decay times.
    """
    f0 = 440.0 * 2 ** ((pitch - 69) / 12)
    partials = np.arange(1, 17)
    frequency = partials * f0 * np.sqrt(1 + stretch * partials**2)
    partials, frequency = partials[frequency < 7_500], frequency[frequency < 7_500]
    time = np.arange(round(_LONGEST * SAMPLE_RATE)) / SAMPLE_RATE
    decay = ring * 1.6 * 2 ** (-(pitch - 60) / 18) / (1 + 0.25 * (partials - 1))
    out = np.zeros(len(time))
    for k, f, tau, phase in zip(partials, frequency, decay, rng.uniform(0, 2 * np.pi, len(partials))):
        out += k**-brightness * np.exp(-time / tau) * np.sin(2 * np.pi * f * time + phase)
    knock = rng.standard_normal(len(time)) * np.exp(-time / 0.006)
    out = out / np.abs(out).max() + 0.08 * knock
    out[:32] *= np.linspace(0, 1, 32)  # 2 ms of fade-in avoid a click
    return (out / np.abs(out).max()).astype(np.float32)


def write_music(rng: np.random.Generator, *, low: int, high: int, rate: float) -> list[tuple[int, float, float]]:
    """Notes (pitch, onset, offset in s) of a piece: chords and runs of one scale, `rate` strokes a second.

    A key is not struck again while it sounds.
    """
    scale = np.array([0, 2, 4, 5, 7, 9, 11]) + int(rng.integers(12))
    keys = np.array([p for p in range(low, high + 1) if (p - scale[0]) % 12 in (scale - scale[0])])
    notes: list[tuple[int, float, float]] = []
    free = dict.fromkeys(range(low, high + 1), 0.0)
    time, place = 0.4, len(keys) // 2
    while time < HEAR_SECONDS - 0.6:
        size = int(rng.choice([1, 2, 3], p=[0.6, 0.22, 0.18]))
        place = int(np.clip(place + rng.integers(-4, 5), 0, len(keys) - 1))
        length = float(np.clip(rng.lognormal(-0.7, 0.6), 0.12, _LONGEST - 0.1))
        for step in range(size):
            pitch = int(keys[min(place + 2 * step, len(keys) - 1)])
            onset = time + float(rng.uniform(0, 0.012)) * step
            if free[pitch] <= onset:
                offset = min(onset + length, HEAR_SECONDS - 0.1)
                notes.append((pitch, round(onset, 3), round(offset, 3)))
                free[pitch] = offset + 0.06
        time += float(rng.choice([0.5, 1.0, 1.0, 2.0])) * 1.5 / rate
    return notes


def play(notes: list[tuple[int, float, float]], backgrounds: list[Recording], rng: np.random.Generator) -> Scene:
    """Synthesise notes: one instrument per piece, one velocity per note, over a faint real background."""
    character = {
        "brightness": float(rng.uniform(0.9, 1.6)),
        "stretch": float(rng.uniform(1e-4, 6e-4)),
        "ring": float(rng.uniform(0.7, 1.3)),
    }
    tones = {p: tone(p, rng=rng, **character) for p in sorted({pitch for pitch, _, _ in notes})}
    out = np.zeros(HEAR_SECONDS * SAMPLE_RATE, np.float32)
    damper = round(_DAMPER * SAMPLE_RATE)
    for pitch, onset, offset in notes:
        at, n = round(onset * SAMPLE_RATE), round((offset - onset) * SAMPLE_RATE)
        sound = tones[pitch][: n + damper].copy()
        sound[n:] *= np.linspace(1, 0, len(sound) - n, dtype=np.float32)
        sound *= 10 ** (rng.uniform(-14, 0) / 20)
        out[at : at + len(sound)] += sound[: len(out) - at]
    out += 10 ** (rng.uniform(-55, -42) / 20) * ground(backgrounds, len(out), rng)
    events = sorted(((str(p), a, b) for p, a, b in notes), key=lambda event: (event[1], event[0]))
    return Scene(out * (0.7 / float(np.abs(out).max())), events)


def build_maestro(
    directory: str | Path,
    *,
    seed: int,
    n_files: int = 9,
    n_folds: int = 3,
    low: int = 53,
    high: int = 72,
    rate: float = 3.0,
    recordings_dir: str | Path = "miniature",
) -> dict[str, Any]:
    """Build a miniature MAESTRO 5h: 120-s pieces at 48 kHz in folds, ``fold00.json`` …, 88 pitches as classes.

    Args:
        low, high: range of the pitches played; a small range is learnt from fewer files.
        rate: strokes per second.
    Returns:
        The content of summary.json.
    """
    directory = Path(directory)
    if not (PITCHES[0] <= low < high <= PITCHES[-1] and n_files >= n_folds >= 2):
        raise ValueError(f"cannot make {n_files} pieces in {n_folds} folds with pitches {low} to {high}")
    backgrounds = load_library(recordings_dir).split(seed)["weak"].backgrounds
    folds: dict[str, dict[str, Scene]] = {f"fold{k:02d}": {} for k in range(n_folds)}
    for number in range(n_files):
        rng = np.random.default_rng([seed, 30, number])
        scene = play(write_music(rng, low=low, high=high, rate=rate), backgrounds, rng)
        fold, name = f"fold{number % n_folds:02d}", f"MIDI-Miniature_{number:02d}_R1_2026_wav.wav"
        folder = directory / str(HEAR_RATE) / fold
        write_wav(folder / name, scene.samples, rate=HEAR_RATE)
        folds[fold][name] = scene
    return write_hear(directory, folds, [str(p) for p in PITCHES], seed=seed, task="maestro")
