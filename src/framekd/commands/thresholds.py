"""`framekd thresholds`: a threshold per class, found on labelled clips."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from framekd.errors import UserError


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("thresholds", help="find the best threshold of each class on labelled clips")
    out.set_defaults(run=thresholds)
    out.add_argument("--model", "--checkpoint", required=True, help="a published name, or a checkpoint folder")
    out.add_argument("--labels", required=True, help="events: a TSV file with filename, onset, offset, event_label")
    out.add_argument("--audio", required=True, metavar="DIR", help="folder of the clips")
    out.add_argument("--out", required=True, help="table to write: class, threshold, f1, events")
    out.add_argument(
        "--metric", choices=["segment", "event"], default="segment", help="F-measure of 1-s segments or of events"
    )
    out.add_argument("--median", type=float, default=0.48, help="length of the median filter in seconds (0.48)")
    out.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 (auto)")


def thresholds(given: argparse.Namespace) -> int:
    """Write the table of thresholds for `framekd predict --threshold`."""
    from framekd.commands.predict import open_for_frames, warn
    from framekd.files import write_text
    from framekd.labels.tsv import read_annotations
    from framekd.predict import median_frames
    from framekd.recordings import locate
    from framekd.thresholds import find_thresholds

    median_frames(given.median)
    if Path(given.out).is_dir():
        raise UserError(f"--out {given.out}: it is a folder; name a file")
    labels = read_annotations(given.labels)
    if not labels.timed:
        raise UserError(f"{labels.path}: thresholds need events (filename, onset, offset, event_label)")
    clips = locate(labels, given.audio, ignore_missing=True, listed=None)
    model, classes = open_for_frames(given.model, given.device)
    known = set(labels.counts())
    if strange := sorted(known - set(classes)):
        warn(f"{len(strange)} of {len(known)} labelled classes are not the model's, such as {strange[0]}")
    from tqdm import tqdm

    with tqdm(total=len(clips), disable=None, leave=False, unit="clip", file=sys.stderr) as bar:
        table = find_thresholds(
            model, classes, labels.events, clips, metric=given.metric, median=given.median, tick=lambda: bar.update()
        )
    shown = table.round({"f1": 4}).astype({"threshold": "float32"})  # as they are compared with scores
    write_text(given.out, shown.to_csv(sep="\t", index=False, lineterminator="\n"))
    print(f"{given.out}: {len(table)} thresholds, mean F-measure {table.f1.mean():.3f}", file=sys.stderr)
    return 0
