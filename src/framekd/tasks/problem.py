"""What a downstream task is to the machinery: pools of clips, runs over them, and a way to score predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from filelock import FileLock

from framekd.audio import decode
from framekd.config import UserError
from framekd.data import Arrays, ClipSet
from framekd.labels import ClassList
from framekd.store import SAMPLE_RATE, Shard, StoredClip, StoreError, write_shard

Score = Callable[[Mapping[str, np.ndarray]], dict[str, float]]
"""Probabilities {clip: [frames, classes]} of the test clips → metrics in 0..1, the task's own first, as `value`."""


@dataclass(frozen=True)
class Part:
    """Some clips (positions) of a pool."""

    pool: str
    clips: np.ndarray


@dataclass(frozen=True)
class Run:
    """One training and its test: a seed, or a fold. Each batch has equally many clips of every part of `train`."""

    name: str
    seed: int
    train: tuple[Part, ...]
    test: Part


@dataclass(frozen=True)
class Problem:
    """A task's data; `objective`: "strong" (frame labels), or "both" (first part frame labels, second clip labels)."""

    task: str
    classes: ClassList
    pools: Mapping[str, ClipSet]
    runs: tuple[Run, ...]
    objective: str
    score: Score

    def log_odds(self, run: Run) -> np.ndarray:
        """[classes]: log odds of a frame showing each class, in the part of a run that has frame labels."""
        part = run.train[0]
        return self.pools[part.pool].select(part.clips).log_odds()


def find(root: Path, *places: str) -> Path:
    """The first of `places` below `root` that exists; a sentence with all of them if none does."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise UserError(f"{root}: none of {', '.join(places)} is there; see docs/downstream.md for the layout")


def _read(path: Path) -> np.ndarray:
    """16 kHz mono int16 [samples] of any audio file; 16-bit files of that rate are taken as they are."""
    if path.suffix == ".wav":
        info = soundfile.info(str(path))
        if info.samplerate == SAMPLE_RATE and info.channels == 1 and info.subtype == "PCM_16":
            return soundfile.read(str(path), dtype="int16")[0]
    return decode(path)


class Audio(Arrays):
    """Audio files, decoded once into a shard beside the data and memory-mapped from then on.

    files: {clip id: path}. Attributes: ids (sorted), samples [clips].  Several processes may ask at once.
    """

    def __init__(self, files: Mapping[str, Path], cache: Path, *, threads: int = 2) -> None:
        names = sorted(files)
        stamps = [_stamp(files[name]) for name in names]
        cache.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache.with_suffix(".lock")):
            shard = _cached(cache, names, stamps)
            if shard is None:
                write_shard(cache, _decoded(files, names, stamps, threads))
                shard = Shard(cache)
        self._shard, self.ids, self.samples = shard, names, np.asarray(shard.samples)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._shard[i]


def _stamp(path: Path) -> str:
    state = path.stat()
    return f"{path.name} {state.st_size} {state.st_mtime_ns}"


def _cached(cache: Path, names: list[str], stamps: list[str]) -> Shard | None:
    if not cache.is_file():
        return None
    try:
        shard = Shard(cache)
    except StoreError:
        return None
    return shard if shard.ids == names and shard.sources == stamps else None


def _decoded(files: Mapping[str, Path], names: list[str], stamps: list[str], threads: int) -> Iterator[StoredClip]:
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(names), 64):
            group = names[first : first + 64]
            waves = pool.map(_read, [files[name] for name in group])
            for name, stamp, samples in zip(group, stamps[first : first + 64], waves):
                yield StoredClip(name, 0, samples, stamp)
