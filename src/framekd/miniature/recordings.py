"""The recordings of the miniature: read, cut into sounding parts, and shared out among the splits by source."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Bool, Float

from framekd.config import UserError

SAMPLE_RATE = 16_000
HOP = 80
"""Samples between two values of an envelope: 5 ms."""
WINDOW = 160
"""Samples under one value of an envelope: 10 ms. Longer windows would smear an onset past the 20 ms we promise."""
BACKGROUND = "Background"
_GAP = 0.25  # s; a shorter pause within one recording does not end its event
_SHORTEST = 0.01  # s


def envelope(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " steps"]:
    """Root mean square over 10 ms every 5 ms: step i is centred on sample ``i * HOP + HOP / 2``."""
    steps = max(1, -(-len(samples) // HOP))
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    middle = np.arange(steps) * HOP + HOP // 2
    low = np.clip(middle - WINDOW // 2, 0, len(samples))
    high = np.clip(middle + WINDOW // 2, 0, len(samples))
    return np.sqrt((total[high] - total[low]) / np.maximum(high - low, 1))


def sounding_parts(
    level: Float[np.ndarray, " steps"], threshold: float, *, gap: float = _GAP, shortest: float = _SHORTEST
) -> list[tuple[float, float]]:
    """The spans (seconds) in which an envelope is above `threshold`: pauses under `gap` closed, blips dropped."""
    above: Bool[np.ndarray, " steps"] = level > threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[0], above.astype(np.int8), [0]])))
    step = HOP / SAMPLE_RATE
    parts: list[tuple[float, float]] = []
    for begin, end in zip(edges[::2] * step, edges[1::2] * step):
        if parts and begin - parts[-1][1] < gap:
            parts[-1] = (parts[-1][0], float(end))
        else:
            parts.append((float(begin), float(end)))
    return [(begin, end) for begin, end in parts if end - begin >= shortest]


@dataclass(frozen=True)
class Recording:
    """One recording: its class (display name) and mid, the source it came from, and its samples at 16 kHz."""

    name: str
    label: str
    mid: str
    source: str
    samples: Float[np.ndarray, " samples"] = field(repr=False)


@dataclass(frozen=True)
class Pool:
    """What the scenes of one split may be made of: {class: recordings}, and backgrounds."""

    events: dict[str, list[Recording]]
    backgrounds: list[Recording]
    speed: float = 0.08
    """How much faster or slower, at most, a take of a recording is played than the recording."""
    tilt: float = 5.0
    """How far, at most, a take's spectrum is tilted, in dB."""

    def sources(self) -> set[tuple[str, str]]:
        """(class, source group) of everything in the pool."""
        every = [r for recordings in self.events.values() for r in recordings] + self.backgrounds
        return {(r.label, r.source) for r in every}


@dataclass(frozen=True)
class Library:
    """All recordings, and the classes (alphabetical) with the number of their events in AudioSet Strong."""

    recordings: list[Recording]
    mids: dict[str, str]
    frequency: dict[str, int]

    @property
    def classes(self) -> list[str]:
        return list(self.mids)

    def split(self, seed: int) -> dict[str, Pool]:
        """Pools ``strong``, ``weak`` and ``eval``; no source of ``eval`` is in the others.

        Of a class's n sources, round(n / 3) go to evaluation; where five or more are there, round(n / 5) of the rest
        are kept for clips with weak labels alone, so that Step 2 hears what strong training does not. ``weak`` holds
        the sources of ``strong`` too. Which source goes where is drawn from (seed, class). Takes of training sources
        are varied far more than those of evaluation: two or three sources of a class are few to learn it from.
        """
        events: dict[str, dict[str, list[Recording]]] = {"strong": {}, "weak": {}, "eval": {}}
        grounds: dict[str, list[Recording]] = {"strong": [], "weak": [], "eval": []}
        for number, label in enumerate([*self.classes, BACKGROUND]):
            mine = [r for r in self.recordings if r.label == label]
            sources = sorted({r.source for r in mine})
            order = np.random.default_rng([seed, 1, number]).permutation(len(sources))
            n_eval, n_weak = round(len(sources) / 3), round(len(sources) / 5) if len(sources) >= 5 else 0
            if label == BACKGROUND:
                n_weak = 0
            role = ["eval"] * n_eval + ["weak"] * n_weak + ["strong"] * (len(sources) - n_eval - n_weak)
            of = {sources[place]: role[rank] for rank, place in enumerate(order)}
            shares = {
                "strong": [r for r in mine if of[r.source] == "strong"],
                "weak": [r for r in mine if of[r.source] != "eval"],
                "eval": [r for r in mine if of[r.source] == "eval"],
            }
            for split, share in shares.items():
                if label == BACKGROUND:
                    grounds[split] = share
                else:
                    events[split][label] = share
        wide = {"speed": 0.25, "tilt": 10.0}
        return {split: Pool(events[split], grounds[split], **({} if split == "eval" else wide)) for split in events}


def load_library(directory: str | Path) -> Library:
    """Read ``recordings.csv``, ``recordings/`` and ``labels/classes.csv`` of the miniature.

    Raises:
        UserError: a file is missing or unreadable, a class has fewer than 3 sources, or there are no backgrounds.
    """
    directory = Path(directory)
    table = directory / "recordings.csv"
    if not table.is_file():
        raise UserError(
            f"{table}: not found; the miniature's recordings lie in the folder miniature/ of the repository"
        )
    with (directory / "labels" / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mids = {row["name"]: row["mid"] for row in rows}
    frequency = {row["name"]: int(row["audioset_strong_events"]) for row in rows}
    recordings = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = directory / "recordings" / row["file"]
            try:
                samples, rate = soundfile.read(path, dtype="float32")
            except (OSError, soundfile.LibsndfileError) as error:
                raise UserError(f"{path}: cannot be read ({error}); check out the repository's files anew") from None
            if rate != SAMPLE_RATE or samples.ndim != 1:
                raise UserError(f"{path}: expected one channel at {SAMPLE_RATE} Hz, not {samples.ndim} at {rate} Hz")
            recordings.append(Recording(row["file"], row["class"], row["mid"], row["source_group"], samples))
    for label in [*mids, BACKGROUND]:
        n = len({r.source for r in recordings if r.label == label})
        if n < 3:
            raise UserError(f"{table}: class {label!r} has {n} source groups; 3 are needed to split by source")
    return Library(recordings, mids, frequency)
