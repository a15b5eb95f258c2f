"""Recordings of events and backgrounds, and scenes that mix them, with labels that say when each event is audible."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Bool, Float
from scipy.signal import lfilter

from framekd.config import UserError
from framekd.events import active_runs, merge_events
from framekd.units import SAMPLE_RATE

ENVELOPE_STEP = 80
"""Samples between two values of an envelope: 5 ms."""
ENVELOPE_WINDOW = 160
"""Samples under one value of an envelope: 10 ms. Longer windows would blur an onset by more than 20 ms."""
BACKGROUND = "Background"
EVENTS_PER_CLIP = ((1, 0.25), (2, 0.35), (3, 0.25), (4, 0.15))
"""Numbers of events in a clip with their probabilities: 2.3 on average."""
EVENT_SECONDS = (1.0, 4.0)
"""An event lasts at least a time drawn from this range, if takes of one recording are repeated."""
SNR_DB = (5.0, 25.0)
ANNOTATED_PAUSE = 1.0
"""Annotators hear repetitions with shorter pauses (in seconds) as one event: steps, moos, peals of laughter."""
_PAUSE = 0.25  # s; a shorter pause does not end an event
_MOST_REPETITIONS = 4
_BETWEEN = (0.05, 0.5)  # s between repetitions
_SHORTEST = 0.01  # s
_AUDIBLE_DB = -30.0  # an event is inaudible below this level, relative to its own peak …
_MASKED_DB = -8.0  # … and below this level relative to the background


# -- recordings ------------------------------------------------------------------------------------------------------


def envelope(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " steps"]:
    """Root mean square over 10 ms every 5 ms; step i is centred on sample ``80 i + 40``."""
    steps = max(1, -(-len(samples) // ENVELOPE_STEP))
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    middle = np.arange(steps) * ENVELOPE_STEP + ENVELOPE_STEP // 2
    low = np.clip(middle - ENVELOPE_WINDOW // 2, 0, len(samples))
    high = np.clip(middle + ENVELOPE_WINDOW // 2, 0, len(samples))
    return np.sqrt((total[high] - total[low]) / np.maximum(high - low, 1))


def sounding_parts(
    level: Float[np.ndarray, " steps"], threshold: float, *, gap: float = _PAUSE, shortest: float = _SHORTEST
) -> list[tuple[float, float]]:
    """Spans (seconds) with the envelope above `threshold`; pauses under `gap` are closed, short spans dropped."""
    above: Bool[np.ndarray, " steps"] = level > threshold
    _, first, last = active_runs(above[:, None])
    step = ENVELOPE_STEP / SAMPLE_RATE
    parts: list[tuple[float, float]] = []
    for begin, end in zip(first * step, last * step):
        if parts and begin - parts[-1][1] < gap:
            parts[-1] = (parts[-1][0], float(end))
        else:
            parts.append((float(begin), float(end)))
    return [(begin, end) for begin, end in parts if end - begin >= shortest]


@dataclass(frozen=True)
class Recording:
    """A recording: file name, class (display name), its mid, the source it came from, and its samples at 16 kHz."""

    name: str
    label: str
    mid: str
    source: str
    samples: Float[np.ndarray, " samples"] = field(repr=False)


@dataclass(frozen=True)
class Pool:
    """Recordings for the scenes of one split: {class: recordings}, and backgrounds."""

    events: dict[str, list[Recording]]
    backgrounds: list[Recording]
    speed: float = 0.08
    """Largest change of speed of a take, as a share."""
    tilt: float = 5.0
    """Largest tilt of the spectrum of a take, in dB."""

    def sources(self) -> set[tuple[str, str]]:
        """(class, source group) of everything in the pool."""
        every = [r for recordings in self.events.values() for r in recordings] + self.backgrounds
        return {(r.label, r.source) for r in every}


@dataclass(frozen=True)
class Library:
    """All recordings, and per class (in alphabetical order) its mid and its number of events in AudioSet Strong.

    `evaluated` are the classes of the miniature AudioSet (Steps 2 and 3): the ones that small models
    can learn. The others serve Step 1 and the downstream sets.
    """

    recordings: list[Recording]
    mids: dict[str, str]
    frequency: dict[str, int]
    evaluated: list[str]

    @property
    def classes(self) -> list[str]:
        return list(self.mids)

    def split(self, seed: int) -> dict[str, Pool]:
        """Pools ``strong``, ``weak`` and ``eval``; no source of ``eval`` is in the others.

        Of the n sources of a class, round(n / 3) are for evaluation. If n >= 5, round(n / 5) of the others are for
        clips with weak labels only, so that Step 2 sees sounds that strong training does not. ``weak`` also has the
        sources of ``strong``. The assignment is drawn from (seed, class). Takes of training sources vary more than
        those of evaluation sources, because a class has only two or three training sources.
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
        raise UserError(f"{table}: not found; the recordings are in the folder miniature/ of the repository")
    with (directory / "labels" / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    mids = {row["name"]: row["mid"] for row in rows}
    frequency = {row["name"]: int(row["audioset_strong_events"]) for row in rows}
    evaluated = [row["name"] for row in rows if row["used_in"] == "steps 2 and 3"]
    recordings = []
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = directory / "recordings" / row["file"]
            try:
                samples, rate = soundfile.read(path, dtype="float32")
            except (OSError, soundfile.LibsndfileError) as error:
                raise UserError(f"{path}: cannot be read ({error}); check out the repository again") from None
            if rate != SAMPLE_RATE or samples.ndim != 1:
                raise UserError(f"{path}: expected one channel at {SAMPLE_RATE} Hz, not {samples.ndim} at {rate} Hz")
            recordings.append(Recording(row["file"], row["class"], row["mid"], row["source_group"], samples))
    for label in [*mids, BACKGROUND]:
        n = len({r.source for r in recordings if r.label == label})
        if n < 3:
            raise UserError(f"{table}: class {label!r} has {n} source groups; 3 are needed to split by source")
    return Library(recordings, mids, frequency, evaluated)


# -- scenes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Mono audio at 16 kHz and its events: (class, onset, offset) in seconds, by onset."""

    samples: Float[np.ndarray, " samples"] = field(repr=False)
    events: list[tuple[str, float, float]]


def deal_classes(
    classes: Sequence[str], weights: Sequence[float], counts: Sequence[int], rng: np.random.Generator, *, least: int = 3
) -> list[list[str]]:
    """Assign classes to clips: clip i gets ``counts[i]`` of them.

    Class k occurs in proportion to ``weights[k]``, but at least `least` times if there are enough places, so that rare
    classes are in every split.
    """
    total, n = int(sum(counts)), len(classes)
    share = np.asarray(weights, np.float64) / np.sum(weights)
    floor = min(least, total // n)
    exact = floor + share * (total - floor * n)
    quota = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - quota), kind="stable")[: total - quota.sum()]
    quota[rest] += 1
    deck = np.repeat(np.arange(n), quota)
    rng.shuffle(deck)
    ends = np.cumsum(counts)
    return [[classes[k] for k in deck[end - count : end]] for end, count in zip(ends, counts)]


def clip_sizes(n: int, rng: np.random.Generator) -> list[int]:
    """Numbers of events of `n` clips, drawn from `EVENTS_PER_CLIP`."""
    sizes, chances = zip(*EVENTS_PER_CLIP)
    return [int(k) for k in rng.choice(sizes, size=n, p=chances)]


def vary(
    samples: Float[np.ndarray, " samples"], rng: np.random.Generator, *, speed: float = 0.08, tilt: float = 5.0
) -> Float[np.ndarray, " varied"]:
    """A take of a recording: faster or slower by a share of up to `speed`, its spectrum tilted by up to `tilt` dB."""
    at = np.arange(0, len(samples) - 1, 1.0 + speed * rng.uniform(-1, 1))
    whole = at.astype(np.int64)
    part = (at - whole).astype(np.float32)
    bent = samples[whole] * (1 - part) + samples[whole + 1] * part
    # A first-order shelf around 1 kHz: y = x + a * lowpass(x).
    shelf = 10 ** (tilt * rng.uniform(-1, 1) / 20) - 1
    pole = float(np.exp(-2 * np.pi * 1000 / SAMPLE_RATE))
    return (bent + shelf * lfilter([1 - pole], [1, -pole], bent)).astype(np.float32)


def ground(
    backgrounds: Sequence[Recording], n_samples: int, rng: np.random.Generator
) -> Float[np.ndarray, " n_samples"]:
    """A background of unit power: a repeated recording, sometimes with a second one or with noise."""
    first = backgrounds[int(rng.integers(len(backgrounds)))]
    bed = _repeat(vary(first.samples, rng), n_samples, rng)
    kind = rng.random()
    if kind < 0.3:
        second = backgrounds[int(rng.integers(len(backgrounds)))]
        bed = bed + rng.uniform(0.2, 0.7) * _repeat(vary(second.samples, rng), n_samples, rng)
    elif kind < 0.6:
        pole = rng.uniform(0.7, 0.98)
        noise = lfilter([1.0], [1, -pole], rng.standard_normal(n_samples, np.float32))
        bed = bed + rng.uniform(0.1, 0.5) * noise / max(float(np.std(noise)), 1e-9)
    return (bed / max(float(np.sqrt(np.mean(np.square(bed)))), 1e-9)).astype(np.float32)


def _repeat(samples: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Repeat `samples` from a random place with cross-fades of half a second, at unit power."""
    fade = min(SAMPLE_RATE // 2, len(samples) // 3)
    ramp = np.sqrt(np.linspace(0, 1, fade, dtype=np.float32))
    piece = samples.copy()
    piece[:fade] *= ramp
    piece[-fade:] *= ramp[::-1]
    stride = len(piece) - fade
    start = int(rng.integers(stride))
    out = np.zeros(n_samples + start + len(piece) + stride, np.float32)
    for place in range(0, n_samples + start + fade, stride):
        out[place : place + len(piece)] += piece
    cut = out[start + fade : start + fade + n_samples]
    return cut / max(float(np.sqrt(np.mean(np.square(cut)))), 1e-9)


@dataclass(frozen=True)
class Placed:
    """A take in a scene: its class, the position of its first sample, and its samples."""

    label: str
    at: int
    samples: Float[np.ndarray, " samples"] = field(repr=False)


def take(pool: Pool, label: str, rng: np.random.Generator, *, seconds: float = 0.0) -> Float[np.ndarray, " samples"]:
    """A take of a recording of `label`; the source is drawn first, so that sources are equally frequent.

    Takes of the source follow each other with short pauses until they last `seconds`, but at most four of them.
    """
    recordings = pool.events[label]
    sources = sorted({r.source for r in recordings})
    source = sources[rng.integers(len(sources))]
    takes = [r for r in recordings if r.source == source]
    parts: list[np.ndarray] = []
    for _ in range(_MOST_REPETITIONS):
        if parts:
            parts.append(np.zeros(round(rng.uniform(*_BETWEEN) * SAMPLE_RATE), np.float32))
        parts.append(vary(takes[rng.integers(len(takes))].samples, rng, speed=pool.speed, tilt=pool.tilt))
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE:
            break
    return np.concatenate(parts)


def lay(labels: Sequence[str], pool: Pool, rng: np.random.Generator, *, window: tuple[float, float]) -> list[Placed]:
    """Repeated takes of `labels` at random places: they begin within `window` (s), and end in it if short enough."""
    placed = []
    for label in labels:
        samples = take(pool, label, rng, seconds=rng.uniform(*EVENT_SECONDS))
        latest = max(window[1] - len(samples) / SAMPLE_RATE, window[0] + 0.35 * (window[1] - window[0]))
        at = rng.uniform(window[0], latest)
        placed.append(Placed(label, round(at * SAMPLE_RATE), samples))
    return placed


def mix(
    placed: Sequence[Placed],
    bed: Float[np.ndarray, " samples"],
    rng: np.random.Generator,
    *,
    snr_db: tuple[float, float] = SNR_DB,
    pause: float = _PAUSE,
) -> Scene:
    """Mix events with a background of unit power, each at its own signal-to-noise ratio, and label the audible parts.

    The ratio is the power of the sounding part of the event over the power of the background. A label covers the time
    in which the envelope of the event is above −30 dB of its own peak and above −8 dB of the background, over all
    frequencies or after pre-emphasis (low-frequency wind does not mask a bell). Times are rounded to milliseconds.
    Spans of one class with less than `pause` seconds between them are one event. Sound after the end of the background
    is cut off.
    """
    hiss = max(float(np.sqrt(np.mean(np.square(_emphasise(bed))))), 1e-9)
    out = bed.astype(np.float32, copy=True)
    rows: list[tuple[str, float, float]] = []
    for event in placed:
        ratio = rng.uniform(*snr_db)
        samples = event.samples[: max(0, len(out) - event.at)]
        level = envelope(samples)
        peak = float(level.max())
        sounding = level[level > peak * 10 ** (_AUDIBLE_DB / 20)]
        gain = 10 ** (ratio / 20) / max(float(np.sqrt(np.mean(np.square(sounding)))), 1e-9)
        out[event.at : event.at + len(samples)] += gain * samples
        over_bed = gain * np.maximum(level, envelope(_emphasise(samples)) / hiss) / 10 ** (_MASKED_DB / 20)
        heard = np.minimum(level / (peak * 10 ** (_AUDIBLE_DB / 20)), over_bed)
        begin = event.at / SAMPLE_RATE
        rows += [(event.label, begin + a, begin + b) for a, b in sounding_parts(heard, 1.0, gap=pause)]
    # Random loudness, without clipping.
    out *= 10 ** (rng.uniform(-48, -30) / 20)
    out *= min(1.0, 0.95 / max(float(np.abs(out).max()), 1e-9))
    return Scene(out, _merged(rows, len(out) / SAMPLE_RATE, pause))


def _emphasise(samples: np.ndarray) -> np.ndarray:
    """First differences: +6 dB per octave."""
    return np.diff(samples, prepend=samples[:1])


def _merged(rows: list[tuple[str, float, float]], end: float, pause: float) -> list[tuple[str, float, float]]:
    names = sorted({label for label, _, _ in rows})
    index = np.array([names.index(label) for label, _, _ in rows], np.int64)
    onset = np.round([a for _, a, _ in rows], 3)
    offset = np.round(np.minimum([b for _, _, b in rows], end), 3)
    heard = offset > onset
    clip = np.zeros(int(heard.sum()), np.int64)
    _, index, onset, offset = merge_events(clip, index[heard], onset[heard], offset[heard] + pause)
    found = [(names[k], float(a), round(float(b) - pause, 3)) for k, a, b in zip(index, onset, offset)]
    return sorted(found, key=lambda event: (event[1], event[0]))
