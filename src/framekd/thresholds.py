"""Thresholds of one's own: for each class the one with the highest F-measure on labelled clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float

from framekd.config import UserError
from framekd.events import active_runs
from framekd.metrics.event_based import onset_offset_matches
from framekd.models import FrameModel
from framekd.predict import predict_file
from framekd.units import FRAME_RATE

Events = list[tuple[float, float, str]]
GRID = np.arange(1, 50) / 50
"""Thresholds that the event metric tries."""
COLLAR, OFFSET_SHARE = 0.2, 0.2


def read_thresholds(path: str | Path) -> dict[str, float]:
    """Read a table with the columns class and threshold, separated by a tab; a head and further columns may be there.

    Raises:
        UserError: there is no such file, or a row has no number.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: neither a number nor a file of thresholds")
    out: dict[str, float] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and cells[1:2] == ["threshold"]):
            continue
        try:
            out[cells[0]] = float(cells[1])
        except (IndexError, ValueError):
            raise UserError(f"{path}, line {number}: expected a class, a tab and a threshold, not {line!r}") from None
    if not out:
        raise UserError(f"{path} holds no threshold")
    return out


class Counter(Protocol):
    """Collects clips, then gives a threshold and its F-measure per class."""

    def add(self, scores: Float[np.ndarray, "frames classes"], events: Events, seconds: float) -> None:
        """Take the filtered scores of a clip, its true events and its length."""

    def best(self) -> list[tuple[float, float]]:
        """(threshold, F-measure) of each class."""


class SegmentCounter:
    """Segments of 1 s: active if an event touches them, and if the highest score in them is above the threshold."""

    def __init__(self, names: Sequence[str]) -> None:
        self.column = {name: k for k, name in enumerate(names)}
        self.scores: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []

    def add(self, scores: Float[np.ndarray, "frames classes"], events: Events, seconds: float) -> None:
        starts = np.arange(0, len(scores), FRAME_RATE)
        truth = np.zeros((len(starts), len(self.column)), bool)
        for onset, offset, name in events:
            truth[int(onset) : int(np.ceil(offset)), self.column[name]] = True
        self.scores.append(np.maximum.reduceat(scores, starts, axis=0))
        self.truth.append(truth)

    def best(self) -> list[tuple[float, float]]:
        scores, truth = np.concatenate(self.scores), np.concatenate(self.truth)
        return [best_threshold(scores[:, k], truth[:, k]) for k in range(len(self.column))]


def best_threshold(scores: Float[np.ndarray, " items"], truth: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest F-measure, half-way between two scores, and that F-measure."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + truth.sum())
    below = np.append(ranked[1:], 0.0)
    f1[ranked == below] = -1  # no threshold lies between two equal scores
    at = int(np.argmax(f1))
    return float(np.clip((ranked[at] + below[at]) / 2, 1e-6, 1 - 1e-6)), float(f1[at])


class EventCounter:
    """Events matched one to one: onsets within 0.2 s, offsets within 0.2 s or 20 % of the event's length."""

    def __init__(self, names: Sequence[str]) -> None:
        self.column = {name: k for k, name in enumerate(names)}
        self.counts = np.zeros((len(GRID), len(names), 3))  # true events, detections, matches

    def add(self, scores: Float[np.ndarray, "frames classes"], events: Events, seconds: float) -> None:
        truth: dict[int, list[tuple[float, float]]] = {}
        for onset, offset, name in events:
            truth.setdefault(self.column[name], []).append((onset, offset))
        for column, true in truth.items():
            self.counts[:, column, 0] += len(true)
        for counts, limit in zip(self.counts, GRID):
            labels, begin, end = active_runs(scores > limit)
            found: dict[int, list[tuple[float, float]]] = {}
            for label, a, b in zip(labels.tolist(), begin / FRAME_RATE, np.minimum(end / FRAME_RATE, seconds)):
                found.setdefault(label, []).append((float(a), float(b)))
            for label, spans in found.items():
                counts[label, 1] += len(spans)
                if label in truth:
                    counts[label, 2] += onset_offset_matches(truth[label], spans, COLLAR, OFFSET_SHARE)

    def best(self) -> list[tuple[float, float]]:
        true, found, hits = np.moveaxis(self.counts, 2, 0)
        f1 = 2 * hits / np.maximum(true + found, 1)
        out = []
        for column in f1.T:  # the middle of the best thresholds
            equal = np.flatnonzero(column == column.max())
            out.append((float(GRID[equal[len(equal) // 2]]), float(column.max())))
        return out


COUNTERS: dict[str, Callable[[Sequence[str]], Counter]] = {"segment": SegmentCounter, "event": EventCounter}


def find_thresholds(
    model: FrameModel,
    classes: Sequence[str],
    labels: Mapping[str, Events],
    clips: Mapping[str, Path],
    *,
    metric: Literal["segment", "event"] = "segment",
    median: float = 0.48,
    tick: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """The threshold of each class with the highest F-measure on labelled clips.

    Args:
        model: on the device where it shall run.
        classes: names of its outputs.
        labels: {clip: its events}.
        clips: {clip: its file}, of some or all clips of `labels`.
        metric: "segment" (1 s) or "event" (onsets and offsets).
        median: length of the median filter in seconds.
        tick: called after each clip.
    Returns:
        A row per class with events: class, threshold, f1, events.
    Raises:
        UserError: no event is of a class of the model.
    """
    counts = dict[str, int]()
    for name, events in labels.items():
        for _, _, label in events if name in clips else ():
            counts[label] = counts.get(label, 0) + 1
    keep = [k for k, name in enumerate(classes) if name in counts]
    if not keep:
        raise UserError("none of the labelled events is of a class of the model")
    names = [classes[k] for k in keep]
    counter = COUNTERS[metric](names)
    for scores, events, seconds in _scored(model, classes, labels, clips, keep, median):
        counter.add(scores, [event for event in events if event[2] in names], seconds)
        tick()
    rows = [(name, limit, f1, counts[name]) for name, (limit, f1) in zip(names, counter.best())]
    return pd.DataFrame(rows, columns=["class", "threshold", "f1", "events"])


def _scored(
    model: FrameModel,
    classes: Sequence[str],
    labels: Mapping[str, Events],
    clips: Mapping[str, Path],
    keep: Sequence[int],
    median: float,
) -> Iterator[tuple[np.ndarray, Events, float]]:
    for name, path in clips.items():
        blocks: list[np.ndarray] = []
        found = predict_file(model, path, classes, keep=keep, median=median, on_filtered=blocks.append)
        yield np.concatenate(blocks), labels[name], found.seconds
