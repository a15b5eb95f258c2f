"""Scenes: recordings of events over real backgrounds, with labels that say where each can be heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.signal import lfilter

from framekd.events import merge_events
from framekd.miniature.recordings import SAMPLE_RATE, Pool, Recording, envelope, sounding_parts

EVENTS_PER_CLIP = ((1, 0.12), (2, 0.24), (3, 0.30), (4, 0.22), (5, 0.12))
"""How many events a clip has, and how often: three on average."""
SNR_DB = (0.0, 20.0)
_AUDIBLE_DB = -30.0  # under an event's own peak nothing counts as heard …
_MASKED_DB = -8.0  # … nor this far under the background


@dataclass(frozen=True)
class Scene:
    """Mono audio at 16 kHz and its events: (class, onset, offset) in seconds, by onset."""

    samples: Float[np.ndarray, " samples"] = field(repr=False)
    events: list[tuple[str, float, float]]


def deal_classes(
    classes: Sequence[str], weights: Sequence[float], counts: Sequence[int], rng: np.random.Generator, *, least: int = 3
) -> list[list[str]]:
    """Share classes out to clips: clip i gets ``counts[i]`` of them.

    Class k occurs in proportion to ``weights[k]`` and at least `least` times (as far as there are places): rare
    classes exist in every split, and the rest follows the imbalance.
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
    """How many events each of `n` clips has, drawn from `EVENTS_PER_CLIP`."""
    sizes, chances = zip(*EVENTS_PER_CLIP)
    return [int(k) for k in rng.choice(sizes, size=n, p=chances)]


def vary(
    samples: Float[np.ndarray, " samples"], rng: np.random.Generator, *, speed: float = 0.08, tilt: float = 5.0
) -> Float[np.ndarray, " varied"]:
    """Another take of a recording: up to a share `speed` faster or slower, its spectrum tilted by up to `tilt` dB."""
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
    """A background of unit power: a real recording repeated; sometimes a second one, or noise, over it."""
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
    """`samples` over and over from a random place, half-second cross-fades between, at unit power."""
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
    """A recording laid into a scene: a class, where its first sample goes, and the samples (a varied take)."""

    label: str
    at: int
    samples: Float[np.ndarray, " samples"] = field(repr=False)


def take(pool: Pool, label: str, rng: np.random.Generator) -> Float[np.ndarray, " samples"]:
    """A varied take of a recording of `label`: the source is drawn first, so that long series do not outweigh."""
    recordings = pool.events[label]
    sources = sorted({r.source for r in recordings})
    source = sources[rng.integers(len(sources))]
    takes = [r for r in recordings if r.source == source]
    return vary(takes[rng.integers(len(takes))].samples, rng, speed=pool.speed, tilt=pool.tilt)


def lay(labels: Sequence[str], pool: Pool, rng: np.random.Generator, *, window: tuple[float, float]) -> list[Placed]:
    """Takes of `labels` at random places that begin and, where they are short enough, end within `window` (seconds)."""
    placed = []
    for label in labels:
        samples = take(pool, label, rng)
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
) -> Scene:
    """Lay events over a background of unit power, each at its own ratio, and say where each is heard.

    The signal-to-noise ratio is the power of the event's sounding part over that of the background. A label spans
    where the event's own envelope (10 ms) is above −30 dB of its peak and also above −8 dB of the background, over all
    frequencies or after pre-emphasis (wind does not hide a bell); times are rounded to milliseconds, and spans of one
    class that touch are one event. What runs over the end is cut off.
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
        rows += [(event.label, begin + a, begin + b) for a, b in sounding_parts(heard, 1.0)]
    # A quiet room or a loud street; never clipped.
    out *= 10 ** (rng.uniform(-48, -30) / 20)
    out *= min(1.0, 0.95 / max(float(np.abs(out).max()), 1e-9))
    return Scene(out, _merged(rows, len(out) / SAMPLE_RATE))


def _emphasise(samples: np.ndarray) -> np.ndarray:
    """First differences: 6 dB an octave towards the high frequencies."""
    return np.diff(samples, prepend=samples[:1])


def _merged(rows: list[tuple[str, float, float]], end: float) -> list[tuple[str, float, float]]:
    names = sorted({label for label, _, _ in rows})
    index = np.array([names.index(label) for label, _, _ in rows], np.int64)
    onset = np.round([a for _, a, _ in rows], 3)
    offset = np.round(np.minimum([b for _, _, b in rows], end), 3)
    _, index, onset, offset = merge_events(np.zeros(len(rows), np.int64), index, onset, offset)
    found = [(names[k], float(a), float(b)) for k, a, b in zip(index, onset, offset) if b > a]
    return sorted(found, key=lambda event: (event[1], event[0]))
