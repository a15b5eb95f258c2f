"""Sets of clips: their audio, and their labels as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from framekd.config import UserError
from framekd.events import active_frames, frame_span, merge_events
from framekd.labels import ClassList, StrongLabels, read_strong, read_weak_segments
from framekd.store import Store
from framekd.units import CLIP_FRAMES, FRAME_RATE, SAMPLE_RATE


class AudioSource(Protocol):
    """Gives the samples of a clip, int16 [samples] at 16 kHz, by position.

    ``read(clips, starts, out)`` fills each row of `out`, int16 [cuts, samples], with the samples of a clip from a start
    on, and with zeros after its end.
    """

    def __getitem__(self, i: int, /) -> np.ndarray: ...

    def read(self, clips: np.ndarray, starts: np.ndarray, out: np.ndarray, /) -> None: ...


class Arrays:
    """Audio in memory.

    Args:
        arrays: one int16 [samples] at 16 kHz per clip.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = [np.ascontiguousarray(a) for a in arrays]
        for i, a in enumerate(self.arrays):
            if a.dtype != np.int16 or a.ndim != 1:
                raise ValueError(f"audio {i}: expected int16 [samples], not {a.dtype} {list(a.shape)}")
        self.samples = np.array([len(a) for a in self.arrays], np.int64)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.arrays[i]

    def read(self, clips: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
        """Fill the rows of `out`: see :class:`AudioSource`."""
        for row, clip, start in zip(out, clips.tolist(), starts.tolist()):
            samples = self.arrays[clip][start : start + len(row)]
            row[: len(samples)], row[len(samples) :] = samples, 0


@dataclass(frozen=True)
class ClipSet:
    """Clips and their labels. Events are columns, sorted by clip and class; events of one class do not overlap.

    Attributes:
        ids: clip ids.
        classes: classes of the labels.
        audio: source of the samples.
        rows: [clips] int64, position of each clip in `audio`.
        samples: [clips] int64, length of each clip.
        start: [clips + 1] int64; the events of clip i are ``start[i]:start[i + 1]``.
        label: [events] int32, positions in `classes`.
        onset, offset: [events] float64 seconds within the clip; NaN for clip labels.
        begin, end: [events] int32 label frames, half open; 0 for clip labels.
        has_frames: [clips] bool, whether the clip's events have times; if not, they are clip labels.
    """

    ids: list[str]
    classes: ClassList
    audio: AudioSource
    rows: np.ndarray
    samples: np.ndarray
    start: np.ndarray
    label: np.ndarray
    onset: np.ndarray
    offset: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    has_frames: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def durations(self) -> np.ndarray:
        """[clips] float64, length of the audio in seconds."""
        return self.samples / SAMPLE_RATE

    def waveform(self, i: int) -> np.ndarray:
        """All samples of clip i: int16 [samples]."""
        return self.audio[int(self.rows[i])]

    def read(self, clips: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
        """Fill the rows of `out`, int16 [cuts, samples], with cuts of `clips` from the samples `starts` on.

        Zeros follow the end of a clip.
        """
        self.audio.read(self.rows[clips], starts, out)

    def select(self, clips: Iterable[int]) -> ClipSet:
        """The set of the clips at these positions, in this order."""
        clips = np.fromiter(clips, np.int64)
        counts = (self.start[1:] - self.start[:-1])[clips]
        start = np.concatenate([[0], np.cumsum(counts)])
        events = np.repeat(self.start[clips] - start[:-1], counts) + np.arange(start[-1])
        columns = {name: getattr(self, name)[events] for name in ("label", "onset", "offset", "begin", "end")}
        rows = {name: getattr(self, name)[clips] for name in ("rows", "samples", "has_frames")}
        return replace(self, ids=[self.ids[i] for i in clips], start=start, **rows, **columns)

    def activity(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns (clip, label, amount); amount is the number of active label frames, or 1 for a clip label."""
        clip = np.repeat(np.arange(len(self)), np.diff(self.start))
        if not self.has_frames.any():
            return clip, self.label, np.ones(len(clip), np.int64)
        end = np.where(self.has_frames[clip], self.end, self.begin + 1)
        return active_frames(clip, self.label, self.begin, end)

    def log_odds(self) -> np.ndarray:
        """[classes] float64: log odds that a frame (or, without frame labels, a clip) has each class.

        As the initial bias of a head they spare it the first thousands of steps, in which it would only learn that most
        classes are rare (Lin et al., ICCV 2017, Sec. 4.1). Clips under 10 s count as padded to 10 s, as in training.
        Half a frame is added to both counts, so that the odds of a class that never occurs are finite.
        """
        _, label, amount = self.activity()
        active = np.bincount(label, amount, minlength=len(self.classes))
        frames = np.maximum(np.ceil(self.durations * FRAME_RATE), CLIP_FRAMES)
        total = frames.sum() if self.has_frames.any() else len(self)
        return np.log((active + 0.5) / (total - active + 0.5))

    def ground_truth(self) -> dict[str, list[tuple[float, float, str]]]:
        """Merged events in seconds by clip: {clip: [(onset, offset, class name), …]}, empty clips included."""
        out: dict[str, list[tuple[float, float, str]]] = {}
        names = self.classes.names
        for i, name in enumerate(self.ids):
            part = slice(self.start[i], self.start[i + 1])
            rows = zip(self.onset[part].tolist(), self.offset[part].tolist(), self.label[part].tolist())
            out[name] = sorted((a, b, names[c]) for a, b, c in rows)
        return out


def clip_set(
    ids: Sequence[str],
    audio: AudioSource,
    classes: ClassList,
    *,
    samples: np.ndarray,
    rows: np.ndarray | None = None,
    events: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None,
    clip_labels: tuple[np.ndarray, np.ndarray] | None = None,
) -> ClipSet:
    """Make a set of clips from columns: either `events` or `clip_labels`.

    Args:
        ids: clip ids.
        audio: source of the samples.
        samples: [clips], length of each clip.
        rows: [clips], position of each clip in `audio`; the same order unless given.
        events: columns (clip, label, onset, offset): positions in `ids` and `classes`, and seconds.
        clip_labels: columns (clip, label): positions in `ids` and `classes`.
    Raises:
        ValueError: both or neither kind of label, or a clip id occurs twice.
    """
    if (events is None) == (clip_labels is None):
        raise ValueError("a clip set has either events or clip labels")
    n = len(ids)
    if len(set(ids)) != n:
        raise ValueError("clip ids occur twice")
    if events is not None:
        clip, label, onset, offset = merge_events(*map(np.asarray, events))
        begin, end = frame_span(onset, offset, n_frames=None)
        # Two events of a class may share a frame; it is given to the first, so that spans do not overlap.
        same = (clip[1:] == clip[:-1]) & (label[1:] == label[:-1])
        begin[1:] = np.where(same, np.maximum(begin[1:], end[:-1]), begin[1:])
    else:
        assert clip_labels is not None
        clip, label = map(np.asarray, clip_labels)
        order = np.lexsort((label, clip))
        clip, label = clip[order], label[order]
        onset = offset = np.full(len(clip), np.nan)
        begin = end = np.zeros(len(clip), np.int32)
    start = np.concatenate([[0], np.cumsum(np.bincount(clip, minlength=n))]).astype(np.int64)
    return ClipSet(
        list(ids),
        classes,
        audio,
        np.arange(n) if rows is None else np.asarray(rows, np.int64),
        np.asarray(samples, np.int64),
        start,
        label.astype(np.int32),
        onset,
        offset,
        begin.astype(np.int32),
        end.astype(np.int32),
        np.full(n, events is not None),
    )


def _stored(store: Store, wanted: Iterable[str], *, drop_missing: bool, what: str) -> list[str]:
    """The wanted clips that are stored, sorted by id. UserError if there are none, or if `drop_missing` is false."""
    wanted = list(wanted)
    found = sorted(name for name in wanted if name in store)
    if not found:
        raise UserError(f"{what}: none of its {len(wanted)} clips is in the store")
    if len(found) < len(wanted) and not drop_missing:
        raise UserError(f"{what}: {len(wanted) - len(found)} of {len(wanted)} clips are not in the store")
    return found


def _open(store: Store | Iterable[str | Path]) -> Store:
    return store if isinstance(store, Store) else Store(store)


def strong_set(
    store: Store | Iterable[str | Path],
    labels: str | Path | StrongLabels,
    classes: ClassList,
    *,
    drop_missing: bool = True,
) -> ClipSet:
    """The clips of strong labels that are in the store, sorted by id.

    Args:
        store: an open store, or the paths of its shards.
        labels: a TSV, or its content.
        classes: classes of the set; events of other classes are dropped, their clips are kept.
        drop_missing: accept that clips are not in the store.
    Raises:
        UserError: none of the clips is in the store, or with drop_missing=False, not all are.
    """
    store = _open(store)
    what = str(labels) if not isinstance(labels, StrongLabels) else "strong labels"
    labels = labels if isinstance(labels, StrongLabels) else read_strong(labels)
    ids = _stored(store, labels.clips, drop_missing=drop_missing, what=what)
    position = {name: i for i, name in enumerate(ids)}
    clip = np.array([position.get(name, -1) for name in labels.clips], np.int64)[labels.clip]
    label = classes.positions(labels.labels)[labels.label]
    keep = (clip >= 0) & (label >= 0)
    events = (clip[keep], label[keep], labels.onset[keep], labels.offset[keep])
    rows = np.array([store.index(name) for name in ids], np.int64)
    return clip_set(ids, store, classes, samples=store.samples[rows], rows=rows, events=events)


def weak_set(
    store: Store | Iterable[str | Path],
    segments: str | Path | Iterable[str | Path],
    classes: ClassList,
    *,
    drop_missing: bool = True,
) -> ClipSet:
    """The clips of weak segment CSVs that are in the store, sorted by id, with clip labels.

    `store`, `classes`, `drop_missing` and errors are as for :func:`strong_set`.
    """
    store = _open(store)
    paths = [segments] if isinstance(segments, str | Path) else list(segments)
    found: dict[str, np.ndarray] = {}
    for path in paths:
        weak = read_weak_segments(path)
        label = classes.positions(weak.labels)[weak.label] if weak.labels else weak.label
        found |= {name: label[a:b] for name, a, b in zip(weak.clips, weak.start[:-1].tolist(), weak.start[1:].tolist())}
    ids = _stored(store, found, drop_missing=drop_missing, what=", ".join(map(str, paths)))
    label = np.concatenate([found[name] for name in ids])
    clip = np.repeat(np.arange(len(ids)), [len(found[name]) for name in ids])
    keep = label >= 0
    rows = np.array([store.index(name) for name in ids], np.int64)
    return clip_set(ids, store, classes, samples=store.samples[rows], rows=rows, clip_labels=(clip[keep], label[keep]))


def labelled(
    ids: Sequence[str],
    audio: Arrays,
    classes: ClassList,
    *,
    events: Mapping[str, Iterable[tuple[float, float, str]]] | None = None,
    clip_labels: Mapping[str, Iterable[str]] | None = None,
) -> ClipSet:
    """Make a set of clips from labels by clip id and class id: either `events` or `clip_labels`.

    Args:
        ids: clip ids, in the order of `audio`.
        audio: samples in memory.
        classes: classes of the set.
        events: {clip id: [(onset, offset, class id), …]} in seconds; clips without an entry have no events.
        clip_labels: {clip id: [class id, …]}.
    Raises:
        UserError: a class is not in `classes`.
    """
    source: Mapping[str, Iterable] = events if events is not None else clip_labels or {}
    clip, label, onset, offset = [], [], [], []
    for i, name in enumerate(ids):
        for item in source.get(name, ()):
            a, b, mid = item if events is not None else (0.0, 0.0, item)
            if mid not in classes:
                raise UserError(f"{name}: class {mid!r} is not in the class list")
            clip.append(i)
            label.append(classes.index(mid))
            onset.append(a)
            offset.append(b)
    whole = np.array(clip, np.int64), np.array(label, np.int32)
    if events is None:
        return clip_set(ids, audio, classes, samples=audio.samples, clip_labels=whole)
    timed = (*whole, np.array(onset, np.float64), np.array(offset, np.float64))
    return clip_set(ids, audio, classes, samples=audio.samples, events=timed)
