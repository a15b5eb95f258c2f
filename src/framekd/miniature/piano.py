"""A miniature MAESTRO: piano-like notes over 120 s, in folds, as HEAR prepares the real set.

No recording of single piano notes under a fitting licence was at hand, so the notes are made by additive synthesis with
what makes a piano's tone: partials a little sharper than harmonic (stiff strings), higher ones weaker and shorter, low
notes ringing longer, a knock at the onset, a damper at the end. Room noise is a real background.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from framekd.miniature.downstream import HEAR_RATE, HEAR_SECONDS, write_hear, write_wav
from framekd.miniature.recordings import SAMPLE_RATE, Recording, load_library
from framekd.miniature.scenes import Scene, ground

PITCHES = range(21, 109)
"""The 88 keys (MIDI numbers): MAESTRO's classes, whatever range is played."""
_LONGEST = 2.5  # s
_DAMPER = 0.05  # s until a released note has gone


def tone(
    pitch: int, *, brightness: float, stretch: float, ring: float, rng: np.random.Generator
) -> Float[np.ndarray, " samples"]:
    """A struck string of MIDI number `pitch`, left to ring for `_LONGEST` seconds, at unit peak.

    `brightness` is the exponent of the partials' fall (larger is duller), `stretch` the inharmonicity coefficient B in
    ``f_k = k f_0 sqrt(1 + B k²)``, and `ring` scales the decay times.
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
    out[:32] *= np.linspace(0, 1, 32)  # 2 ms: a hammer, not a click
    return (out / np.abs(out).max()).astype(np.float32)


def write_music(rng: np.random.Generator, *, low: int, high: int, rate: float) -> list[tuple[int, float, float]]:
    """Notes (pitch, onset, offset in s) of a piece: chords and runs of one scale, `rate` strokes a second.

    A key that still sounds is not struck again.
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
    """Notes as sound: one instrument for the piece, a velocity for each note, over a faint real background."""
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

    `low` … `high` are the pitches played (a range smaller than the keyboard is learnt from fewer files), `rate` the
    strokes a second.
    Returns the content of summary.json.
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
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / name, scene.samples, rate=HEAR_RATE)
        folds[fold][name] = scene
    return write_hear(directory, folds, [str(p) for p in PITCHES], seed=seed, task="maestro")
