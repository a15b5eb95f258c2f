"""AudioSet's published label files: strict readers, and the class lists that follow from them (Sec. 3.1).

A clip is named ``{ytid}_{start in ms}`` everywhere, in the strong files as in the weak ones (which spell the same thing
in three columns). YouTube ids may hold underscores and may begin with a hyphen.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from framekd.config import UserError

STRONG_HEADER = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(0|[1-9][0-9]{0,8})")
_MID = re.compile(r"/[a-z]{1,2}/[A-Za-z0-9_]{1,24}")


@dataclass(frozen=True)
class ClassList:
    """Classes in their order: the index of a class is its row in every score and target array."""

    mids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.mids) != len(self.names):
            raise ValueError(f"a class list needs one name per id, not {len(self.names)} for {len(self.mids)}")
        for what, values in (("ids", self.mids), ("names", self.names)):
            if len(set(values)) != len(values):
                twice = sorted({v for v in values if values.count(v) > 1})
                raise ValueError(f"class {what} occur twice: {', '.join(twice[:5])}")

    @classmethod
    def of(cls, names: Iterable[str]) -> ClassList:
        """A list of classes that have no ids but their names (downstream tasks)."""
        names = tuple(names)
        return cls(names, names)

    def __len__(self) -> int:
        return len(self.mids)

    def __contains__(self, mid: object) -> bool:
        return mid in self._positions

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {mid: i for i, mid in enumerate(self.mids)}

    def index(self, mid: str) -> int:
        """Row of the class with id `mid`; KeyError if it is not in the list."""
        return self._positions[mid]

    def positions(self, mids: Iterable[str]) -> np.ndarray:
        """Rows of `mids`, -1 where a class is not in the list: int32."""
        return np.fromiter((self._positions.get(m, -1) for m in mids), np.int32)

    def select(self, mids: Iterable[str]) -> ClassList:
        """The classes among `mids`, in this list's order."""
        wanted = set(mids)
        keep = [i for i, m in enumerate(self.mids) if m in wanted]
        return ClassList(tuple(self.mids[i] for i in keep), tuple(self.names[i] for i in keep))


def valid_ytid(text: str) -> bool:
    """Whether `text` is a YouTube id: eleven letters, digits, underscores or hyphens."""
    return _YTID.fullmatch(text) is not None


def clip_id(ytid: str, start_ms: int) -> str:
    """The name of the clip of video `ytid` that begins `start_ms` milliseconds into it."""
    if not valid_ytid(ytid) or start_ms < 0:
        raise ValueError(f"not a clip: video {ytid[:40]!r} at {start_ms} ms")
    return f"{ytid}_{start_ms}"


def parse_clip_id(text: str) -> tuple[str, int]:
    """`text` as (YouTube id, start in milliseconds); ValueError in one sentence for anything else."""
    match = _CLIP.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:40]!r} is not a segment id; expected the 11 characters of a YouTube id, an underscore "
            "and the start in milliseconds"
        )
    return match[1], int(match[2])


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
    """Numbered lines of a text file; a missing or unreadable file is the user's to mend."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such label file; set audioset.labels_dir or fetch it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; is it the published file?") from None


class _Ids:
    """Numbers for texts, in order of first appearance; each new text is checked once."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}

    def of(self, text: str, check) -> int:
        found = self.number.get(text)
        if found is None:
            check(text)
            found = self.number[text] = len(self.number)
        return found


def _check_mid(text: str) -> None:
    if _MID.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a class id; expected one such as '/m/09x0r'")


def read_strong(path: str | Path) -> StrongLabels:
    """Read a strong TSV (segment_id, start_time_seconds, end_time_seconds, label).

    A malformed line is a :class:`UserError` that names the file, the line and what was expected. An event of length 0
    is kept (it marks no frame); one that ends before it begins, or outside 0 to 60 s, is refused.
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
    """Read a weak segments CSV: comment lines, then ``YTID, start, end, "mid,mid"``. Errors name the line."""
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
            # A clip that lists a label twice has it once.
            found = {labels.of(m.strip(), _check_mid): None for m in mids.strip('"').split(",")}
        except ValueError as error:
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
        if not tab or not name or _MID.fullmatch(mid) is None:
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
        if len(row) != 3 or row[0] != str(len(mids)) or _MID.fullmatch(row[1]) is None:
            raise UserError(f"{path}: line {number}: expected {len(mids)}, a class id and a name, not {row}")
        mids.append(row[1])
        names.append(row[2])
    return ClassList(tuple(mids), tuple(names))


def derive_classes(labels: Iterable[str], names: dict[str, str], *, source: str = "labels") -> ClassList:
    """The class list of the mids that occur: sorted by display name, as the authors' lists are."""
    found = set(labels)
    unknown = sorted(found - names.keys())
    if unknown:
        raise UserError(f"{source}: no display name for {', '.join(unknown[:5])} in mid_to_display_name.tsv")
    mids = sorted(found, key=lambda m: names[m])
    return ClassList(tuple(mids), tuple(names[m] for m in mids))


def strong_classes(
    train_tsv: str | Path,
    eval_tsv: str | Path,
    names: str | Path | dict[str, str],
    *,
    expected: tuple[int, int, int] | None = (447, 416, 407),
) -> tuple[ClassList, ClassList, ClassList]:
    """Strong classes as the files have them: (train, eval, common), each sorted by display name.

    With the published counts expected, the lists are held against the known ones too; a difference is a
    :class:`UserError` that names the classes.
    """
    names = names if isinstance(names, dict) else read_display_names(names)
    train = derive_classes(read_strong_labels(train_tsv), names, source=str(train_tsv))
    evaluated = derive_classes(read_strong_labels(eval_tsv), names, source=str(eval_tsv))
    common = train.select(evaluated.mids)
    return check_classes(train, evaluated, common, expected=expected)


def read_strong_labels(path: str | Path) -> list[str]:
    """The mids that occur in a strong TSV."""
    return read_strong(path).labels


def check_classes(
    train: ClassList, evaluated: ClassList, common: ClassList, *, expected: tuple[int, int, int] | None
) -> tuple[ClassList, ClassList, ClassList]:
    """Return the three lists if they are as expected (see :func:`strong_classes`)."""
    found = (len(train), len(evaluated), len(common))
    if expected is None:
        return train, evaluated, common
    if tuple(expected) == PUBLISHED_COUNTS:
        for what, derived, known in zip(
            ("training", "evaluation", "common"), (train, evaluated, common), known_strong()
        ):
            lost, new = sorted(set(known.mids) - set(derived.mids)), sorted(set(derived.mids) - set(known.mids))
            if lost or new:
                raise UserError(
                    f"the strong {what} file has {len(derived)} classes where {len(known)} are published "
                    f"(missing: {', '.join(lost[:5]) or 'none'}; unknown: {', '.join(new[:5]) or 'none'}); "
                    "is a label file cut off? For a subset, write audioset: {expected_classes: null}"
                )
    if found != tuple(expected):
        raise UserError(
            f"the strong label files have {found[0]} training, {found[1]} evaluation and {found[2]} common classes, "
            f"where audioset.expected_classes says {list(expected)}; "
            f"write audioset: {{expected_classes: {list(found)}}} or null"
        )
    return train, evaluated, common


PUBLISHED_COUNTS = (447, 416, 407)


def _vocabulary(name: str) -> list[dict[str, str]]:
    text = resources.files("framekd").joinpath("vocabulary", name).read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, row)) for row in rows]


@lru_cache(maxsize=1)
def known_strong() -> tuple[ClassList, ClassList, ClassList]:
    """The published strong classes without any file: (447 train, 416 eval, 407 common), sorted by display name."""
    rows = _vocabulary("strong_labels.tsv")

    def those(keep) -> ClassList:
        kept = [row for row in rows if keep(row)]
        return ClassList(tuple(row["mid"] for row in kept), tuple(row["name"] for row in kept))

    return (
        those(lambda row: row["train"] == "1"),
        those(lambda row: row["eval"] == "1"),
        those(lambda row: row["train"] == row["eval"] == "1"),
    )


@lru_cache(maxsize=1)
def known_weak() -> ClassList:
    """The 527 published weak classes in their order, without any file."""
    rows = _vocabulary("weak_labels.tsv")
    return ClassList(tuple(row["mid"] for row in rows), tuple(row["name"] for row in rows))
