"""Recordings of one's own and their labels: which file belongs to which row, how long it is, what does not fit."""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from framekd.audio import EXTENSIONS
from framekd.config import UserError
from framekd.errors import printable
from framekd.labels.tsv import Annotations

TOLERANCE = 0.04  # s that an event may last beyond the end of its clip without a word


def note(sentence: str) -> None:
    """Say what a user should know but need not mend."""
    print(f"framekd: {sentence}", file=sys.stderr, flush=True)


def some(names: Iterable[str], most: int = 3) -> str:
    """Up to `most` names, and how many more there are."""
    listed = [printable(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def locate(
    labels: Annotations, folder: str | Path, *, ignore_missing: bool = False, listed: Collection[str] | None = ()
) -> dict[str, Path]:
    """Find the files of a table of labels.

    A file is looked for at its name below `folder`, and then by its last part alone in all folders below.

    Args:
        folder: with the audio.
        ignore_missing: leave out labelled files that are not there.
        listed: files that other tables have; audio in no table is counted on stderr. None: it is not counted.
    Returns:
        {file name in the table: path}.
    Raises:
        UserError: files are missing, or a name is in several folders; they are counted.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder with audio")
    present = {path for path in root.rglob("*") if path.is_file()}
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in present:
        by_name[path.name].append(path)
    found: dict[str, Path] = {}
    missing: list[str] = []
    several: list[str] = []
    for name in labels.files:
        options = [root / name] if root / name in present else by_name[Path(name).name]
        if len(options) == 1:
            found[name] = options[0]
        else:
            (several if options else missing).append(name)
    total = len(labels.files)
    if several:
        raise UserError(
            f"{labels.path}: {len(several)} of {total} files are in more than one folder below {root} "
            f"({some(several)}); write their names with the folder"
        )
    if missing and not (ignore_missing and found):
        hint = "" if len(missing) == total else "; --ignore-missing goes on without them"
        raise UserError(f"{labels.path}: {len(missing)} of {total} files are not in {root} ({some(missing)}){hint}")
    if missing:
        note(f"{labels.path}: {len(missing)} of {total} files are not in {root} and are left out ({some(missing)})")
    if listed is None:
        return found
    audio = {path for path in present if path.suffix.lower() in EXTENSIONS}
    elsewhere = {Path(name).name for name in listed}
    if rest := sorted(path.name for path in audio - set(found.values()) if path.name not in elsewhere):
        note(
            f"{len(rest)} of {len(audio)} audio files in {root} have no labels and are left out "
            f"({some(rest)}); a row with the file name alone is a clip without events"
        )
    return found


def fit_times(labels: Annotations, seconds: Mapping[str, float]) -> Annotations:
    """Events cut at the end of their clips.

    Args:
        seconds: length of each file.
    Raises:
        UserError: events begin after the end of their clip; they are counted.
    """
    if not labels.timed:
        return labels
    late, cut, total = [], [], 0
    events: dict[str, list[tuple[float, float, str]]] = {}
    for name, rows in labels.events.items():
        end = seconds[name]
        total += len(rows)
        late += [f"{name}: {onset:g} s of {end:.2f} s" for onset, _, _ in rows if onset >= end]
        cut += [name for _, offset, _ in rows if offset > end + TOLERANCE]
        events[name] = [(onset, min(offset, end), label) for onset, offset, label in rows]
    if late:
        raise UserError(
            f"{labels.path}: {len(late)} of {total} events begin after the end of their clip ({some(late, 1)}); are "
            "these the recordings that were labelled?"
        )
    if cut:
        note(f"{labels.path}: {len(cut)} of {total} events last beyond the end of their clip and are cut ({cut[0]})")
    return replace(labels, events=events)


def read_durations(path: str | Path, files: Iterable[str]) -> dict[str, float]:
    """Read the seconds of `files` from a table with the columns filename and duration.

    Raises:
        UserError: no such table or columns, files without a duration, or one that is not a positive number.
    """
    path, wanted = Path(path), list(files)
    if not path.is_file():
        raise UserError(f"{path}: no such table of durations")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"filename", "duration"} <= rows[0].keys():
        raise UserError(f"{path}: expected the columns filename and duration, separated by tabs")
    out = {}
    for row in rows:
        try:
            out[row["filename"]] = float(row["duration"])
        except (TypeError, ValueError):
            out[row["filename"]] = math.nan
    if missing := [name for name in wanted if name not in out]:
        raise UserError(f"{path}: {len(missing)} of {len(wanted)} files have no duration ({some(missing)})")
    if wrong := [name for name in wanted if not 0 < out[name] < math.inf]:
        raise UserError(f"{path}: {len(wrong)} of {len(wanted)} durations are no positive number ({some(wrong)})")
    return {name: out[name] for name in wanted}
