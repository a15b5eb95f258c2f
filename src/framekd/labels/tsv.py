"""Labels of one's own recordings: tables with events or with clip labels, in DESED's columns."""

from __future__ import annotations

import csv
import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from framekd.config import UserError
from framekd.labels.classes import known_strong, known_weak

EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
CLIP_COLUMNS = ("filename", "event_labels")

Event = tuple[float, float, str]
"""Onset and offset in seconds, and the class."""


@dataclass(frozen=True)
class Annotations:
    """The labels of a table, by file name in the order of the table; an empty list is a file without any.

    Attributes:
        path: the table.
        timed: whether the labels are events; if not, they are clip labels.
        events: {file: [(onset, offset, class), …]}, sorted; empty for clip labels.
        clip_labels: {file: [class, …]}, each once; of events, the classes that occur.
    """

    path: Path
    timed: bool
    events: dict[str, list[Event]]
    clip_labels: dict[str, list[str]]

    @property
    def files(self) -> list[str]:
        return list(self.clip_labels)

    def counts(self) -> Counter[str]:
        """Events (or clips) per class."""
        if self.timed:
            return Counter(label for rows in self.events.values() for *_, label in rows)
        return Counter(label for labels in self.clip_labels.values() for label in labels)

    def select(self, files: Iterable[str], classes: Iterable[str] | None = None) -> Annotations:
        """The labels of some files, and of some classes (None: all); files without labels are kept."""
        wanted = None if classes is None else set(classes)
        names = list(files)
        events = {
            name: [row for row in self.events[name] if wanted is None or row[2] in wanted]
            for name in (names if self.timed else [])
        }
        labels = {
            name: [label for label in self.clip_labels[name] if wanted is None or label in wanted] for name in names
        }
        return Annotations(self.path, self.timed, events, labels)


def read_annotations(path: str | Path) -> Annotations:
    """Read a table of events (filename, onset, offset, event_label) or of clip labels (filename, event_labels).

    Columns are separated by tabs, or by commas if the header has no tab; further columns are ignored. Clip labels of
    one cell are separated by commas; AudioSet's names that have commas are one label. A row with a file name alone is
    a file without labels.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or has other columns; or rows are wrong, which are counted.
    """
    path = Path(path)
    header, rows = _table(path)
    timed = set(EVENT_COLUMNS) <= set(header)
    if not timed and not set(CLIP_COLUMNS) <= set(header):
        raise UserError(
            f"{path}: expected the columns {', '.join(EVENT_COLUMNS)} (events) or {', '.join(CLIP_COLUMNS)} (clip "
            f"labels), separated by tabs, but the first line has {', '.join(header[:6])}"
        )
    _refuse(path, rows, "have no filename", lambda row: not row["filename"])
    events: dict[str, list[Event]] = {}
    labels: dict[str, list[str]] = {row["filename"]: [] for _, row in rows}
    if timed:
        events = _events(path, rows)
        labels = {name: sorted({label for *_, label in found}) for name, found in events.items()}
    else:
        for _, row in rows:
            found = labels[row["filename"]]
            labels[row["filename"]] = list(dict.fromkeys((*found, *_names(row["event_labels"]))))
    if not any(labels.values()):
        raise UserError(f"{path}: none of its {len(rows)} rows has a label")
    return Annotations(path, timed, events, labels)


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The column names of a table, and its rows with their line numbers; cells are stripped."""
    if not path.is_file():
        raise UserError(f"{path}: no such table of labels")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text; save the table as UTF-8") from None
    first, _, rest = text.lstrip("\r\n").partition("\n")
    if not rest.strip():
        raise UserError(f"{path}: the table is empty; it needs a header and a row per event or file")
    lines = csv.reader(text.splitlines(), delimiter="\t" if "\t" in first else ",")
    header: list[str] = []
    rows = []
    for cells in lines:
        cells = [cell.strip() for cell in cells]
        if not header:
            header = cells
        elif any(cells):
            rows.append((lines.line_num, dict.fromkeys(header, "") | dict(zip(header, cells))))
    return header, rows


def _refuse(
    path: Path, rows: list[tuple[int, dict[str, str]]], what: str, wrong: Callable[[dict[str, str]], bool]
) -> None:
    """UserError that counts the rows of which `wrong` is true."""
    if found := [number for number, row in rows if wrong(row)]:
        raise UserError(f"{path}: {len(found)} of {len(rows)} rows {what}, first in line {found[0]}")


@lru_cache(maxsize=1)
def _with_commas() -> frozenset[str]:
    """AudioSet's class names that have commas, such as "Baby cry, infant cry"."""
    names = (*known_strong()[0].names, *known_strong()[1].names, *known_weak().names)
    return frozenset(name for name in names if "," in name)


def _names(cell: str) -> Iterator[str]:
    """The labels in a cell."""
    parts = cell.split(",")
    while parts:
        whole = (n for n in range(len(parts), 1, -1) if ",".join(parts[:n]).strip() in _with_commas())
        count = next(whole, 1)
        if name := ",".join(parts[:count]).strip():
            yield name
        parts = parts[count:]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _events(path: Path, rows: list[tuple[int, dict[str, str]]]) -> dict[str, list[Event]]:
    out: dict[str, list[Event]] = {row["filename"]: [] for _, row in rows}
    full = [(n, row) for n, row in rows if any(row[key] for key in EVENT_COLUMNS[1:])]
    _refuse(path, full, "have times but no event_label", lambda row: not row["event_label"])
    times = {n: (_seconds(row["onset"]), _seconds(row["offset"])) for n, row in full}
    for what, wrong in (
        ("have an onset or offset that is not a number of seconds", lambda t: not all(map(math.isfinite, t))),
        ("begin before 0 s", lambda t: t[0] < 0),
        ("do not end after they begin", lambda t: t[1] <= t[0]),
    ):
        if found := [n for n, _ in full if wrong(times[n])]:
            raise UserError(f"{path}: {len(found)} of {len(full)} events {what}, first in line {found[0]}")
    for n, row in full:
        out[row["filename"]].append((*times[n], row["event_label"]))
    return {name: sorted(found) for name, found in out.items()}


def unknown_classes(counts: Mapping[str, int], known: Iterable[str], *, most: int = 5) -> str | None:
    """The classes of `counts` that are not `known`, with their counts and the nearest known name; None if all are."""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    strange = sorted(set(counts) - set(names), key=lambda name: (-counts[name], name))
    shown = []
    for name in strange[:most]:
        near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
        shown.append(f"{name} ({counts[name]}" + (f"; did you mean {folded[near[0]]!r}?)" if near else ")"))
    more = f" and {len(strange) - most} more" if len(strange) > most else ""
    return f"{', '.join(shown)}{more}" if strange else None
