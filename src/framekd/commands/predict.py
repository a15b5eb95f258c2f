"""`framekd predict`: events in audio files of any format and length."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framekd.errors import UserError
from framekd.files import replacing, write_json

FORMATS = ("tsv", "json", "audacity")
COLUMNS = ("onset", "offset", "event_label", "score")


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("predict", help="detect events in audio files of any format and length")
    out.set_defaults(run=predict)
    out.add_argument("files", nargs="+", metavar="FILE")
    out.add_argument("--model", "--checkpoint", required=True, help="a published model, a checkpoint folder or a run")
    out.add_argument("--out", help="folder for the results (default: beside each file)")
    out.add_argument("--threshold", type=float, default=0.5, help="probability above which a class is active (0.5)")
    out.add_argument("--median", type=float, default=0.48, help="length of the median filter in seconds (0.48)")
    out.add_argument("--format", default="tsv", help="comma-separated: tsv, json, audacity (tsv)")
    out.add_argument("--plot", action="store_true", help="also write a picture of the scores")


def predict(given: argparse.Namespace) -> int:
    """Detect events in each file. A file that cannot be read is reported and skipped, and the exit code is 1."""
    formats = given.format.split(",")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
    if not 0 < given.threshold < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, not {given.threshold:g}")
    from framekd.audio import DecodeError
    from framekd.metrics import median_filter
    from framekd.predict import predict_file
    from framekd.published import open_detector

    model, spec = open_detector(given.model)
    classes, failed = spec["classes"], 0
    for name in given.files:
        try:
            found = predict_file(
                model, name, classes, threshold=given.threshold, smooth=lambda x: median_filter(x, seconds=given.median)
            )
        except (DecodeError, UserError, FileNotFoundError) as error:
            message = str(error) if str(error).startswith(name) else f"{name}: {error}"
            print(f"framekd: {message}", file=sys.stderr)
            failed += 1
            continue
        stem = Path(given.out) / Path(name).name if given.out else Path(name)
        for form in formats:
            _write(stem, form, found.events)
        if given.plot:
            _plot(stem, found, classes, given.threshold)
        print(f"{name}: {len(found.events)} events in {found.seconds:.1f} s", file=sys.stderr)
    return int(failed > 0)


def _write(stem: Path, form: str, events: Sequence[tuple[float, float, str, float]]) -> None:
    """Write events as `stem`.events.tsv, .events.json or .labels.txt (Audacity)."""
    path = stem.with_name(stem.name + {"tsv": ".events.tsv", "json": ".events.json", "audacity": ".labels.txt"}[form])
    if form == "json":
        write_json(path, [dict(zip(COLUMNS, event)) for event in events])
        return
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        if form == "tsv":
            table.writerow(COLUMNS)
        for onset, offset, label, score in events:
            times = [f"{onset:.2f}", f"{offset:.2f}", label]
            table.writerow([*times, f"{score:.3f}"] if form == "tsv" else times)


def _plot(stem: Path, found: Any, classes: Sequence[str], threshold: float) -> None:
    import numpy as np

    from framekd.plots import score_timeline
    from framekd.units import FRAME_RATE

    stamps = np.arange(len(found.probabilities) + 1) / FRAME_RATE
    figure = score_timeline(found.probabilities, classes, timestamps=stamps, threshold=threshold, title=stem.name)
    with replacing(stem.with_name(stem.name + ".png")) as aside:
        figure.savefig(aside, dpi=120)
