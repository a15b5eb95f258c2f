"""DESED (DCASE 2023 Task 4): weak real and strong synthetic clips, 10 classes; PSDS1 with the variance penalty."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.data import ClipSet, labelled
from framekd.labels import ClassList
from framekd.metrics import median_filter, psds1
from framekd.tasks.problem import Audio, Part, Problem, Run, Score, find

# Where DESED's own tool, the DCASE baseline and the miniature keep things; 16-kHz copies come first.
METADATA = {
    "weak": ("metadata/train/weak.tsv", "weak.tsv"),
    "synthetic": (
        "metadata/train/synthetic21_train/soundscapes.tsv",
        "metadata/train/synthetic.tsv",
        "synthetic.tsv",
    ),
    "validation": ("metadata/validation/validation.tsv", "validation.tsv"),
}
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
}
Events = dict[str, list[tuple[float, float, str]]]


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if not set(columns) <= set(reader.fieldnames or ()):
            raise UserError(f"{path}: expected tab-separated columns {', '.join(columns)}")
        return list(reader)


def read_strong(path: Path) -> Events:
    """Events by file: columns filename, onset, offset, event_label; a file without events has empty cells."""
    out: Events = {}
    for number, row in enumerate(_rows(path, ("filename", "onset", "offset", "event_label")), start=2):
        events = out.setdefault(row["filename"], [])
        if not row["event_label"]:
            continue
        try:
            onset, offset = float(row["onset"]), float(row["offset"])
        except ValueError:
            raise UserError(f"{path}: line {number}: onset and offset must be seconds") from None
        if not 0 <= onset <= offset:
            raise UserError(f"{path}: line {number}: an event from {onset} to {offset} s")
        events.append((onset, offset, row["event_label"]))
    return out


def read_weak(path: Path) -> dict[str, list[str]]:
    """Labels by file: columns filename, event_labels (comma separated)."""
    rows = _rows(path, ("filename", "event_labels"))
    return {row["filename"]: [label for label in row["event_labels"].split(",") if label] for row in rows}


def _audio(root: Path, kind: str, wanted: Sequence[str]) -> Audio:
    """The files of `kind` that are there; what is missing is counted aloud, for real clips do vanish."""
    folder = find(root, *AUDIO[kind])
    files = {name: folder / name for name in wanted if (folder / name).is_file()}
    if not files:
        raise UserError(f"{folder}: none of the {len(wanted)} files of the {kind} list is there")
    if len(files) < len(wanted):
        print(f"DESED {kind}: {len(files)} of {len(wanted)} files are there ({folder})", file=sys.stderr)
    return Audio(files, root / f"cache-16k-{kind}.h5")


def _pools(root: Path) -> tuple[ClassList, dict[str, ClipSet]]:
    weak = read_weak(find(root, *METADATA["weak"]))
    strong = {kind: read_strong(find(root, *METADATA[kind])) for kind in ("synthetic", "validation")}
    classes = ClassList.of(sorted({c for labels in weak.values() for c in labels}))
    for kind, events in strong.items():
        strange = {c for rows in events.values() for _, _, c in rows if c not in classes}
        if strange:
            raise UserError(f"{root}: {kind} has {', '.join(sorted(strange))}, which no weak clip has")
    pools = {}
    for kind, events in strong.items():
        audio = _audio(root, kind, list(events))
        pools[kind] = labelled(audio.ids, audio, classes, events=events)
    audio = _audio(root, "weak", list(weak))
    pools["weak"] = labelled(audio.ids, audio, classes, clip_labels=weak)
    return classes, pools


def scorer(clips: ClipSet, options: Task) -> Score:
    """PSDS1 with the variance penalty (`value`), and without it, of median-filtered scores."""
    truth, names = clips.ground_truth(), list(clips.classes.names)
    durations = dict(zip(clips.ids, clips.durations.tolist()))

    def score(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        smooth = {name: median_filter(values, options.median_seconds) for name, values in predictions.items()}
        plain, strict = (psds1(smooth, truth, durations, names, variance_penalty=flag) for flag in (False, True))
        return {"value": strict.value, "psds1_without_penalty": plain.value, "clips": float(len(smooth))}

    return score


def load(root: Path, options: Task, *, seeds: Sequence[int]) -> Problem:
    """Half of each batch strong synthetic, half weak; tested on the validation clips; one run a seed."""
    classes, pools = _pools(root)
    whole = {name: Part(name, np.arange(len(pool))) for name, pool in pools.items()}
    train, test = (whole["synthetic"], whole["weak"]), whole["validation"]
    runs = tuple(Run(str(seed), seed, train, test) for seed in seeds)
    return Problem("DESED", classes, pools, runs, "both", scorer(pools["validation"], options))
