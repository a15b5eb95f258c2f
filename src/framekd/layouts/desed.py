"""The layout of DESED: lists of clips with labels (TSV), and folders of audio."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from framekd.errors import UserError
from framekd.layouts.folders import DESED_LISTS, PUBLIC, PUBLIC_LIST, Events, inside

JUDGING = "judging"
"""The official synthetic clips for validation, which a folder may lack."""
METADATA = {
    **DESED_LISTS,
    JUDGING: ("metadata/validation/synthetic21_validation/soundscapes.tsv",),
    PUBLIC: (PUBLIC_LIST,),
}
# Copies at 16 kHz come first.
AUDIO = {
    "weak": ("audio/train/weak_16k", "audio/train/weak", "audio/weak", "weak"),
    "synthetic": (
        "audio/train/synthetic21_train/soundscapes_16k",
        "audio/train/synthetic21_train/soundscapes",
        "audio/train/synthetic",
        "audio/synthetic",
        "synthetic",
    ),
    "validation": (
        "audio/validation/validation_16k",
        "audio/validation/validation",
        "audio/validation",
        "validation",
    ),
    JUDGING: (
        "audio/validation/synthetic21_validation/soundscapes_16k",
        "audio/validation/synthetic21_validation/soundscapes",
    ),
    PUBLIC: ("audio/eval/public_16k", "audio/eval/public"),
}


def rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a tab-separated table that has at least `columns`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, delimiter="\t")
            if not set(columns) <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: expected tab-separated columns {', '.join(columns)}")
            return list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None


def read_strong(path: Path) -> Events:
    """Read events by file from a TSV with columns filename, onset, offset (s) and event_label.

    A row with empty cells is a file without events. UserError names the line of a wrong time.
    """
    out: Events = {}
    for number, row in enumerate(rows(path, ("filename", "onset", "offset", "event_label")), start=2):
        events = out.setdefault(inside(row["filename"] or "", path), [])
        if not row["event_label"]:
            continue
        try:
            onset, offset = float(row["onset"]), float(row["offset"])
        except (TypeError, ValueError):
            raise UserError(f"{path}: line {number}: onset and offset must be numbers of seconds") from None
        if not 0 <= onset <= offset < float("inf"):
            raise UserError(f"{path}: line {number}: an event cannot last from {onset} to {offset} s")
        events.append((onset, offset, row["event_label"]))
    return out


def read_weak(path: Path) -> dict[str, list[str]]:
    """Read labels by file from a TSV with columns filename and event_labels (separated by commas)."""
    return {
        inside(row["filename"] or "", path): [label for label in (row["event_labels"] or "").split(",") if label]
        for row in rows(path, ("filename", "event_labels"))
    }
