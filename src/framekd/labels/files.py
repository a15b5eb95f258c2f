"""Readers of AudioSet's published label files, and the ids in them.

A malformed line is an error that names the file, the line and what was expected.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framekd.config import UserError
from framekd.labels.classes import ClassList, check_classes, derive_classes

_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(0|[1-9][0-9]{0,8})")
_MID = re.compile(r"/[a-z]{1,2}/[A-Za-z0-9_]{1,24}")
STRONG_HEADER = ("segment_id", "start_time_seconds", "end_time_seconds", "label")


def valid_ytid(text: str) -> bool:
    """Whether `text` is a YouTube id: eleven letters, digits, underscores or hyphens."""
    return _YTID.fullmatch(text) is not None


def clip_id(ytid: str, start_ms: int) -> str:
    """Id of the clip of video `ytid` that begins at `start_ms` milliseconds."""
    if not valid_ytid(ytid) or start_ms < 0:
        raise ValueError(f"not a clip: video {ytid[:40]!r} at {start_ms} ms")
    return f"{ytid}_{start_ms}"


def parse_clip_id(text: str) -> tuple[str, int]:
    """Split a clip id into (YouTube id, start in milliseconds); ValueError if it is malformed."""
    match = _CLIP.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:40]!r} is not a segment id; expected the 11 characters of a YouTube id, an underscore "
            "and the start in milliseconds"
        )
    return match[1], int(match[2])


def valid_mid(text: str) -> bool:
    """Whether `text` is the id of a class, such as '/m/09x0r'."""
    return _MID.fullmatch(text) is not None


@dataclass(frozen=True)
class StrongLabels:
    """Events of a strong label file, as columns; clips and labels in order of first appearance.

    Attributes:
        clips: clip ids.
        labels: mids.
        clip: [events] int32, index into `clips`.
        label: [events] int32, index into `labels`.
        onset, offset: [events] float64, seconds within the clip.
    """

    clips: list[str]
    labels: list[str]
    clip: np.ndarray
    label: np.ndarray
    onset: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.clip)


@dataclass(frozen=True)
class WeakLabels:
    """Segments of a weak label file, as columns; the labels of clip i are ``label[start[i]:start[i + 1]]``.

    Attributes:
        clips: clip ids.
        end_ms: [clips] int64, end within the video.
        labels: mids in order of first appearance.
        start: [clips + 1] int64, bounds of each clip's labels.
        label: int32, index into `labels`.
    """

    clips: list[str]
    end_ms: np.ndarray
    labels: list[str]
    start: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.clips)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file; UserError if it is missing or not text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such label file; set audioset.labels_dir or fetch it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; is it the published file?") from None


class _Ids:
    """Numbers texts in order of first appearance, and checks each new text once."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def of(self, text: str, check: Callable[[str], object]) -> int:
        found = self.number.get(text)
        if found is None:
            check(text)
            found = self.number[text] = len(self.number)
        return found


def _check_mid(text: str) -> None:
    if not valid_mid(text):
        raise ValueError(f"{text[:40]!r} is not a class id; expected one such as '/m/09x0r'")


def read_strong(path: str | Path) -> StrongLabels:
    """Read a strong TSV (segment_id, start_time_seconds, end_time_seconds, label).

    An event of length 0 is kept (it marks no frame). An event that ends before it begins, or lies outside 0 to 60 s, is
    refused.

    Raises:
        UserError: the file is missing, or a line is malformed.
    """
    path = Path(path)
    clips, labels = _Ids(), _Ids()
    clip: list[int] = []
    label: list[int] = []
    onset: list[float] = []
    offset: list[float] = []
    lines = _lines(path)
    _, header = next(lines, (1, ""))
    if tuple(header.split("\t"))[:4] != STRONG_HEADER or header.count("\t") != 3:
        raise UserError(
            f"{path}: line 1: expected the tab-separated columns {' '.join(STRONG_HEADER)}, not {header[:80]!r}"
        )
    for number, line in lines:
        if not line:
            continue
        try:
            name, begin, end, mid = line.split("\t")
            a, b = float(begin), float(end)
            if not 0 <= a <= b <= 60:
                raise ValueError(f"an event from {begin} to {end} s is impossible in a 10-s clip")
            c, m = clips.of(name, parse_clip_id), labels.of(mid, _check_mid)
        except ValueError as error:
            what = f"expected 4 columns, not {line.count(chr(9)) + 1}" if line.count("\t") != 3 else str(error)
            raise UserError(f"{path}: line {number}: {what}") from None
        clip.append(c)
        label.append(m)
        onset.append(a)
        offset.append(b)
    return StrongLabels(
        list(clips.number),
        list(labels.number),
        np.array(clip, np.int32),
        np.array(label, np.int32),
        np.array(onset, np.float64),
        np.array(offset, np.float64),
    )


def read_weak_segments(path: str | Path) -> WeakLabels:
    """Read a weak segments CSV: comment lines, then ``YTID, start, end, "mid,mid"``.

    Raises:
        UserError: the file is missing, or a line is malformed.
    """
    path = Path(path)
    clips: dict[str, int] = {}
    labels = _Ids()
    end_ms: list[int] = []
    start: list[int] = [0]
    label: list[int] = []
    for number, line in _lines(path):
        if not line or line.startswith("#"):
            continue
        try:
            ytid, begin, end, mids = (part.strip() for part in line.split(",", 3))
            a, b = round(float(begin) * 1000), round(float(end) * 1000)
            if not 0 <= a < b:
                raise ValueError(f"a segment from {begin} to {end} s is impossible")
            name = clip_id(ytid, a)
            if name in clips:
                raise ValueError(f"clip {name} occurs twice (first as clip {clips[name] + 1})")
            # A dictionary, because a clip may list a label twice.
            found = {labels.of(m.strip(), _check_mid): None for m in mids.strip('"').split(",")}
        except (ValueError, OverflowError) as error:  # float("inf") has no milliseconds
            what = 'expected YTID, start, end, "mid,mid"' if line.count(",") < 3 else str(error)
            raise UserError(f"{path}: line {number}: {what}") from None
        clips[name] = len(clips)
        label.extend(found)
        start.append(len(label))
        end_ms.append(b)
    return WeakLabels(
        list(clips),
        np.array(end_ms, np.int64),
        list(labels.number),
        np.array(start, np.int64),
        np.array(label, np.int32),
    )


def read_display_names(path: str | Path) -> dict[str, str]:
    """Read mid_to_display_name.tsv (mid, tab, name; no header): {mid: name}, names unique."""
    path = Path(path)
    names: dict[str, str] = {}
    for number, line in _lines(path):
        if not line:
            continue
        mid, tab, name = line.partition("\t")
        if not tab or not name or not valid_mid(mid):
            raise UserError(f"{path}: line {number}: expected a class id, a tab and a name, not {line[:80]!r}")
        if mid in names or name in names.values():
            raise UserError(f"{path}: line {number}: {mid} {name!r} occurs twice")
        names[mid] = name
    return names


def read_weak_classes(path: str | Path) -> ClassList:
    """Read class_labels_indices.csv (index,mid,display_name): the weak classes in their published order."""
    path = Path(path)
    rows = csv.reader(line for _, line in _lines(path))
    if next(rows, []) != ["index", "mid", "display_name"]:
        raise UserError(f"{path}: line 1: expected the columns index,mid,display_name")
    mids: list[str] = []
    names: list[str] = []
    for number, row in enumerate(rows, 2):
        if len(row) != 3 or row[0] != str(len(mids)) or not valid_mid(row[1]):
            raise UserError(f"{path}: line {number}: expected {len(mids)}, a class id and a name, not {row}")
        mids.append(row[1])
        names.append(row[2])
    return ClassList(tuple(mids), tuple(names))


def strong_classes(
    train_tsv: str | Path,
    eval_tsv: str | Path,
    names: str | Path | dict[str, str],
    *,
    expected: tuple[int, int, int] | None = (447, 416, 407),
) -> tuple[ClassList, ClassList, ClassList]:
    """Derive the strong classes from the label files.

    Args:
        train_tsv, eval_tsv: strong label files.
        names: mid_to_display_name.tsv, or its content.
        expected: numbers of classes; None accepts any. With the published numbers, the classes are compared too.
    Returns:
        (train, eval, common), each sorted by display name.
    Raises:
        UserError: the classes are not as expected.
    """
    names = names if isinstance(names, dict) else read_display_names(names)
    train = derive_classes(read_strong_labels(train_tsv), names, source=str(train_tsv))
    evaluated = derive_classes(read_strong_labels(eval_tsv), names, source=str(eval_tsv))
    common = train.select(evaluated.mids)
    return check_classes(train, evaluated, common, expected=expected)


def read_strong_labels(path: str | Path) -> list[str]:
    """The mids that occur in a strong TSV."""
    return read_strong(path).labels
