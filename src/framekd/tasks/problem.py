"""A downstream task: pools of clips, training and test runs over them, and the score of predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import soundfile
from filelock import FileLock

from framekd.audio import decode
from framekd.config import HeadRecipe, UserError
from framekd.data import Arrays, ClipSet
from framekd.labels import ClassList
from framekd.store import Shard, StoredClip, StoreError, write_shard
from framekd.train import numpy_generator
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES, SAMPLE_RATE

Score = Callable[[Mapping[str, np.ndarray]], dict[str, float]]
"""Maps probabilities {clip: [frames, classes]} of the test clips to metrics; `value` is the task's own, 0..1."""
Judge = Callable[[Sequence[Mapping[str, np.ndarray]]], float]
"""Maps probabilities of the validation clips, by part, to a value, 0..1: the higher, the better."""
R = TypeVar("R", bound=HeadRecipe)


@dataclass(frozen=True)
class Part:
    """Some clips (positions) of a pool."""

    pool: str
    clips: np.ndarray


@dataclass(frozen=True)
class Run:
    """One training and its test: a seed, or a fold. Each batch has the same number of clips from every part.

    Attributes:
        valid: clips that judge, a part for each of `train`, with labels of the same kind; () without any.
    """

    name: str
    seed: int
    train: tuple[Part, ...]
    test: Part
    valid: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Problem:
    """The data of a task.

    Attributes:
        objective: "strong" (frame labels), or "both" (frame labels of the first part, clip labels of the second).
        judge: value of predictions of a run's validation clips; None without any.
        further: other test clips of every run by name, and their score.
    """

    task: str
    classes: ClassList
    pools: Mapping[str, ClipSet]
    runs: tuple[Run, ...]
    objective: Literal["strong", "both"]
    score: Score
    judge: Judge | None = None
    further: Mapping[str, tuple[Part, Score]] = field(default_factory=dict)

    def scores(self, run: Run, predicted: Callable[[Part], Mapping[str, np.ndarray]]) -> dict[str, float]:
        """The metrics of a run's test clips, and of further ones with their name before each metric."""
        out = self.score(predicted(run.test))
        for name, (part, score) in self.further.items():
            out |= {f"{name}_{metric}": value for metric, value in score(predicted(part)).items()}
        return out

    def judged_together(self) -> list[list[int]]:
        """Positions of the runs with the same validation clips: seeds are judged together, folds each by itself."""
        groups: dict[tuple, list[int]] = {}
        for i, run in enumerate(self.runs):
            clips = tuple((part.pool, part.clips.tobytes()) for part in run.valid)
            groups.setdefault(clips, []).append(i)
        return list(groups.values())

    def kinds(self) -> tuple[Literal["strong", "weak"], ...]:
        """The kind of labels of each part of a run."""
        return ("strong", "weak") if self.objective == "both" else ("strong",)

    def log_odds(self, run: Run) -> np.ndarray:
        """[classes]: log odds that a frame shows each class, from the part of the run that has frame labels."""
        part = run.train[0]
        return self.pools[part.pool].select(part.clips).log_odds()

    def constant(self, run: Run) -> dict[str, np.ndarray]:
        """{clip: [frames, classes]}: each class's share of active training frames as its probability in every frame."""
        share = 1 / (1 + np.exp(-self.log_odds(run)))
        test = self.pools[run.test.pool].select(run.test.clips)
        frames = np.maximum(frame_count(test.samples), CLIP_FRAMES).tolist()
        return {name: np.tile(share, (count, 1)) for name, count in zip(test.ids, frames)}


def share_of(recipe: R, parts: int) -> R:
    """The recipe for one part of each batch: `batch_size` and `epoch_clips` divided by the number of parts.

    Raises:
        UserError: `batch_size` is not a multiple of `parts`.
    """
    if recipe.batch_size % parts:
        raise UserError(f"batch_size {recipe.batch_size} is not a multiple of {parts}; write an even number")
    share = {"batch_size": recipe.batch_size // parts, "epoch_clips": max(1, recipe.epoch_clips // parts)}
    return recipe.model_copy(update=share)


def hold_out(clips: np.ndarray, share: float, *, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions that train, and the `share` of `clips` that is held out at random, at least one.

    Raises:
        UserError: the share is 0 or leaves nothing to train on.
    """
    held = max(1, round(share * len(clips))) if share else 0
    if not 0 < held < len(clips):
        raise UserError(
            f"{what}: a share of {share:g} of {len(clips)} training clips leaves nothing to train on or to judge; "
            "write search: {share: 0.1}"
        )
    order = numpy_generator(seed, "validation clips").permutation(clips)
    return np.sort(order[held:]), np.sort(order[:held])


def frame_count(samples: np.ndarray) -> np.ndarray:
    """Label frames of clips with so many samples; a frame that begins counts."""
    return -(-samples // FRAME_SAMPLES)


def join_crops(crops: np.ndarray, samples: int) -> np.ndarray:
    """Concatenate the successive 10-s crops of one clip.

    Args:
        crops: [crops, 250, classes].
        samples: length of the clip in audio samples.
    Returns:
        [frames, classes] up to the last frame of the clip, at least 250 frames.
    """
    return crops.reshape(-1, crops.shape[-1])[: max(-(-int(samples) // FRAME_SAMPLES), CLIP_FRAMES)]


class Audio(Arrays):
    """Audio files, decoded once into a shard beside the data and memory-mapped afterwards.

    Several processes may open the same cache at once. The cache is written again when a file changes (name, size,
    modification time).

    Args:
        files: {clip id: path}.
        cache: path of the shard.
        threads: files decoded at the same time.
    Attributes:
        ids: clip ids, sorted.
        samples: [clips], length of each clip in samples at 16 kHz.
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

    def read(self, clips: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
        """Fill the rows of `out`: see :class:`framekd.data.clips.AudioSource`."""
        self._shard.read(clips, starts, list(out))


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


def _read(path: Path) -> np.ndarray:
    """int16 [samples] at 16 kHz, mono, of any audio file; 16-bit mono wav files of that rate are read as they are."""
    if path.suffix == ".wav":
        with suppress(soundfile.LibsndfileError):  # it is not what its name says
            info = soundfile.info(str(path))
            if info.samplerate == SAMPLE_RATE and info.channels == 1 and info.subtype == "PCM_16":
                return soundfile.read(str(path), dtype="int16")[0]
    return decode(path)
