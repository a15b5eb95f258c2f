"""The layout of the tasks that HEAR prepared: labelvocabulary.csv, and per split a JSON list and a folder of audio."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from framekd.errors import UserError
from framekd.labels import ClassList
from framekd.layouts.folders import Events, find, inside

AUDIO = ("16000", "48000", "44100", "22050", "32000", "audio")


def read_vocabulary(path: Path) -> ClassList:
    """Read the classes, in the order of their index, from a CSV with columns idx and label."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"idx", "label"} <= rows[0].keys():
            raise UserError(f"{path}: expected columns idx,label")
        rows.sort(key=lambda row: int(row["idx"]))
        if [int(row["idx"]) for row in rows] != list(range(len(rows))):
            raise UserError(f"{path}: idx must count from 0 to {len(rows) - 1}")
        return ClassList.of(row["label"] for row in rows)
    except (ValueError, TypeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: expected numbers and different labels in the columns idx,label ({error})") from None


def read_split(path: Path, classes: ClassList) -> Events:
    """Read the events of a split. The file has milliseconds, the result has seconds."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # not JSON, or not text
        raise UserError(f"{path}: not JSON ({error})") from None
    out: Events = {}
    if not isinstance(content, dict) or not all(isinstance(events, list) for events in content.values()):
        raise UserError(f"{path}: expected a list of events for each file")
    for name, events in content.items():
        rows = []
        for event in events:
            try:
                label = str(event["label"])
                start, end = float(event["start"]), float(event["end"])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: {name} has an event without label, start and end in ms") from None
            if label not in classes:
                raise UserError(f"{path}: {name} has label {label!r}, which labelvocabulary.csv lacks")
            if not 0 <= start <= end < float("inf"):
                raise UserError(f"{path}: {name} has an event from {start} to {end} ms")
            rows.append((start / 1000, end / 1000, label))
        out[inside(name, path)] = sorted(rows)
    if not out:
        raise UserError(f"{path}: lists no files")
    return out


def locate(root: Path, split: str, names: Iterable[str]) -> dict[str, Path]:
    """The recordings that the list of a split names, in the folder of the split or beside it.

    Raises:
        UserError: some are absent; it names how many, and the first.
    """
    audio, names = find(root, *AUDIO), list(names)
    out = {n: next((p for p in (audio / split / n, audio / n) if p.is_file()), None) for n in names}
    lost = sorted(name for name, path in out.items() if path is None)
    if lost:
        raise UserError(
            f"{audio}: {len(lost)} of {len(names)} recordings that {split}.json lists are absent, such as {lost[0]}; "
            "complete the folder, or correct the list"
        )
    return {name: path for name, path in out.items() if path is not None}


def unlisted(root: Path, split: str, names: Iterable[str]) -> list[str]:
    """Recordings in the folder of a split that its list does not name, sorted."""
    folder = find(root, *AUDIO) / split
    there = {path.name for path in folder.glob("*.wav")} if folder.is_dir() else set()
    return sorted(there - set(names))
