"""Events in audio of any length, as a chain of generators: decode → windows → probabilities → median filter → events.

No step holds more than some seconds of audio or scores, so the memory does not depend on the length of a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.audio import DecodeError, decode_stream, to_int16
from framekd.config import UserError
from framekd.events import active_runs
from framekd.metrics import median_filter
from framekd.metrics.filters import window_frames
from framekd.models import FrameModel
from framekd.units import FRAME_RATE, SAMPLE_RATE
from framekd.windows import HOP_FRAMES, logits_stream, model_device, windowed

__all__ = ["COLUMNS", "Prediction", "predict_file", "predict_stream", "predict_waveform", "windowed"]

COLUMNS = ("onset", "offset", "event_label", "score")
MAX_MEDIAN = 10.0
"""Longest median filter in seconds: the cost of its sorting network grows with the length."""

Threshold = float | Mapping[str, float]
Block = TypeVar("Block")


@dataclass(frozen=True)
class Prediction:
    """What a model detected in a recording.

    Attributes:
        events: a row per event, sorted by onset: onset and offset in seconds, event_label, score (the highest filtered
            probability of the event).
        peaks: a row per class, highest first: event_label, score (the highest filtered probability of the recording),
            onset (where it is first reached, in seconds).
        seconds: length of the recording.
    """

    events: pd.DataFrame
    peaks: pd.DataFrame
    seconds: float


def predict_file(
    model: FrameModel,
    path: Path | str,
    classes: Sequence[str],
    **options: object,
) -> Prediction:
    """Detect events in an audio or video file of any format, rate, number of channels and length.

    Args:
        model: on the device where it shall run.
        path: the file.
        classes: names of the model's outputs.
        options: see :func:`predict_stream`.
    Raises:
        DecodeError: nothing can be decoded, or the file holds no sample.
        FileNotFoundError: no such file.
    """
    blocks = (to_int16(block) / np.float32(32768) for block in decode_stream(path))
    try:
        return predict_stream(model, blocks, classes, **options)  # type: ignore[arg-type]
    except NoSamples:
        raise DecodeError(f"{path}: it holds no audio samples") from None


def predict_waveform(
    model: FrameModel, waveform: Float[Tensor, " samples"], classes: Sequence[str], **options: object
) -> Prediction:
    """Detect events in samples at 16 kHz, -1 … 1; arguments as for :func:`predict_stream`."""
    return predict_stream(model, [waveform.numpy()], classes, **options)  # type: ignore[arg-type]


class NoSamples(UserError):
    """A recording without a single sample."""


def predict_stream(
    model: FrameModel,
    blocks: Iterable[Float[np.ndarray, " samples"]],
    classes: Sequence[str],
    *,
    threshold: Threshold = 0.5,
    median: float = 0.48,
    keep: Sequence[int] | None = None,
    hop_frames: int = HOP_FRAMES,
    batch_size: int | None = None,
    precision: str = "fp32",
    on_audio: Callable[[np.ndarray], None] | None = None,
    on_scores: Callable[[np.ndarray], None] | None = None,
    on_filtered: Callable[[np.ndarray], None] | None = None,
) -> Prediction:
    """Detect events in consecutive blocks of samples at 16 kHz, -1 … 1.

    Args:
        model: on the device where it shall run.
        blocks: of any lengths.
        classes: names of the model's outputs.
        threshold: probability above which a class is active: one, or {class: threshold} with 0.5 for the others.
        median: length of the median filter in seconds; 0: none.
        keep: columns of the classes that are looked for; None: all.
        hop_frames: distance of the windows of 250 frames.
        batch_size: windows per forward pass; None: 4 on a CPU, 32 on a GPU.
        precision: see :func:`framekd.inference.autocast`.
        on_audio, on_scores, on_filtered: called with each block of samples, of probabilities [frames, kept classes]
            before the filter, and after it.
    Raises:
        NoSamples: the blocks hold no sample.
        UserError: a threshold or the length of the filter is out of range, or a threshold's class is unknown.
    """
    if len(classes) != getattr(model, "n_classes", len(classes)):
        raise ValueError(f"the model has {model.n_classes} classes, but {len(classes)} names were given")
    names = list(classes) if keep is None else [classes[k] for k in keep]
    limits, window = threshold_array(threshold, names, known=classes), median_frames(median)
    if batch_size is None:
        batch_size = 4 if model_device(model).type == "cpu" else 32
    length, peaks = _Length(), _Peaks(len(names))
    audio = watched(watched(blocks, length), on_audio)
    logits = logits_stream(model, audio, hop_frames=hop_frames, batch_size=batch_size, precision=precision)
    raw = watched(probabilities(logits, keep), on_scores)
    filtered = watched(watched(median_stream(raw, window), peaks), on_filtered)
    runs = list(event_runs(filtered, limits))
    if length.samples == 0:
        raise NoSamples("the recording holds no audio samples")
    seconds = length.samples / SAMPLE_RATE
    return Prediction(event_table(runs, names, seconds), peaks.table(names), seconds)


class _Length:
    def __init__(self) -> None:
        self.samples = 0

    def __call__(self, block: np.ndarray) -> None:
        self.samples += len(block)


class _Peaks:
    """The highest score of each class, and its frame."""

    def __init__(self, classes: int) -> None:
        self.score, self.frame, self.frames = np.full(classes, -1.0, np.float32), np.zeros(classes, np.int64), 0

    def __call__(self, block: np.ndarray) -> None:
        where = block.argmax(0)
        best = block[where, np.arange(block.shape[1])]
        higher = best > self.score
        self.score[higher], self.frame[higher] = best[higher], self.frames + where[higher]
        self.frames += len(block)

    def table(self, names: Sequence[str]) -> pd.DataFrame:
        table = pd.DataFrame({"event_label": names, "score": self.score, "onset": self.frame / FRAME_RATE})
        return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def watched(blocks: Iterable[Block], watcher: Callable[[Block], None] | None) -> Iterator[Block]:
    """The blocks themselves; `watcher` is called with each."""
    for block in blocks:
        if watcher is not None:
            watcher(block)
        yield block


def threshold_array(threshold: Threshold, names: Sequence[str], *, known: Sequence[str]) -> np.ndarray:
    """Thresholds of the classes `names`: float32 [classes].

    Raises:
        UserError: a threshold is not between 0 and 1, or its class is not among `known`.
    """
    given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
    strange = [name for name in given if name not in set(known)]
    if strange:
        raise UserError(f"there is a threshold for {strange[0]!r}, but the model has no such class")
    for name, value in given.items():
        if not 0 < value < 1:
            raise UserError(f"a threshold is a probability between 0 and 1, not {value:g}" + _of(threshold, name))
    return np.array([given.get(name, 0.5) for name in names], np.float32)


def _of(threshold: Threshold, name: str) -> str:
    return f" (class {name})" if isinstance(threshold, Mapping) else ""


def median_frames(seconds: float) -> int:
    """Frames of a median filter; UserError if its length is not within 0 … 10 s."""
    if not 0 <= seconds <= MAX_MEDIAN:
        raise UserError(f"the median filter is 0 (none) to {MAX_MEDIAN:g} seconds long, not {seconds:g}")
    return window_frames(seconds)


def probabilities(
    logits: Iterable[Float[Tensor, "frames classes"]], keep: Sequence[int] | None = None
) -> Iterator[Float[np.ndarray, "frames classes"]]:
    """Probabilities of the kept classes of blocks of logits."""
    columns = None if keep is None else torch.as_tensor(list(keep))
    for block in logits:
        kept = block if columns is None else block.index_select(1, columns)
        yield np.ascontiguousarray(kept.sigmoid().numpy())


def median_stream(
    blocks: Iterable[Float[np.ndarray, "frames classes"]], window: int
) -> Iterator[Float[np.ndarray, "frames classes"]]:
    """Median over time of consecutive blocks: equal to :func:`framekd.metrics.median_filter` of all of them at once.

    Args:
        blocks: scores; a result is late by half a window.
        window: length in frames.
    """
    left, right = window // 2, window - 1 - window // 2
    kept, ready = np.zeros((0, 0), np.float32), 0  # the last rows, and how many of them have been filtered
    for block in blocks:
        kept = np.concatenate([kept, block]) if len(kept) else block
        if (until := len(kept) - right) > ready:
            yield median_filter(kept, frames=window)[ready:until]
            first = max(0, until - left)
            kept, ready = kept[first:], until - first
    if len(kept) > ready:
        yield median_filter(kept, frames=window)[ready:]


def event_runs(
    blocks: Iterable[Float[np.ndarray, "frames classes"]], limits: Float[np.ndarray, " classes"]
) -> Iterator[tuple[int, int, int, float]]:
    """Runs of frames above a threshold in consecutive blocks of scores, in the order of their ends.

    Args:
        blocks: scores.
        limits: threshold of each class.
    Yields:
        (class, begin, end, highest score): half-open frame spans from the first block's begin.
    """
    begun: dict[int, tuple[int, float]] = {}
    at = 0
    for block in (block for block in blocks if len(block)):
        going: dict[int, tuple[int, float]] = {}
        ended: list[tuple[int, int, int, float]] = []
        for label, begin, end in zip(*(column.tolist() for column in active_runs(block > limits))):
            start, peak = at + begin, float(block[begin:end, label].max())
            if begin == 0 and label in begun:
                start, before = begun.pop(label)
                peak = max(peak, before)
            if end == len(block):
                going[label] = (start, peak)
            else:
                ended.append((label, start, at + end, peak))
        ended += ((label, start, at, peak) for label, (start, peak) in begun.items())
        yield from sorted(ended, key=lambda run: run[2])
        begun, at = going, at + len(block)
    yield from ((label, start, at, peak) for label, (start, peak) in begun.items())


def event_table(runs: Iterable[tuple[int, int, int, float]], names: Sequence[str], seconds: float) -> pd.DataFrame:
    """Events of runs of frames, cut at `seconds`; a run that begins after the end of the audio is padding."""
    rows = [
        (begin / FRAME_RATE, min(end / FRAME_RATE, seconds), names[label], peak)
        for label, begin, end, peak in runs
        if begin / FRAME_RATE < seconds
    ]
    return pd.DataFrame(sorted(rows), columns=list(COLUMNS)).astype(
        {"onset": float, "offset": float, "event_label": str, "score": float}
    )
