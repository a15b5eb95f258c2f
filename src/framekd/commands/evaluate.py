"""`framekd evaluate`: scores of a model on labelled recordings, as a table and a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from framekd.errors import UserError
from framekd.files import write_text

TITLES = {
    "psds1": "PSDS1",
    "psds1_with_penalty": "PSDS1 with variance penalty",
    "event_f1": "event F1, mean of classes",
    "event_f1_all_events": "event F1, all events",
    "segment_f1": "segment F1, mean of classes",
    "segment_f1_all_segments": "segment F1, all segments",
    "map": "mAP",
    "map_of_chance": "mAP of chance",
    "accuracy": "accuracy",
    "accuracy_of_chance": "accuracy of chance",
}
EVENTS = (
    "All scores are in percent. PSDS1: dtc = gtc = 0.7, at most 100 false positives per hour; the penalty subtracts "
    "the standard deviation over the classes. Event F1: onsets within 200 ms, and offsets within 200 ms or 20 % of the "
    "event. Segment F1: segments of 1 s. PSDS1 needs no threshold; the F-measures use the one above."
)
CLIPS = (
    "All scores are in percent. mAP is the mean of the average precisions of the classes. By chance it is the share of "
    "clips with a class. Accuracy is given where every clip has one label: the class with the highest score."
)


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("evaluate", help="score a model on labelled recordings")
    out.set_defaults(run=evaluate)
    out.add_argument("--model", required=True, help="a published model or a checkpoint folder")
    out.add_argument("--labels", required=True, help="TSV: filename, onset, offset, event_label (or event_labels)")
    out.add_argument("--audio", required=True, help="folder of the recordings")
    out.add_argument("--durations", help="TSV: filename, duration in seconds (default: the recordings' lengths)")
    out.add_argument("--out", help="folder for scores.csv and scores.html (default: only print)")
    out.add_argument("--threshold", type=float, default=0.5, help="probability above which a class is active (0.5)")
    out.add_argument("--median", type=float, default=0.48, help="length of the median filter in seconds (0.48)")
    out.add_argument("--ignore-unknown", action="store_true", help="leave out classes that the model lacks")
    out.add_argument("--ignore-missing", action="store_true", help="leave out labelled files that are not there")
    out.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 (auto)")


def evaluate(given: argparse.Namespace) -> int:
    """Score a model, print the table, and write it and the page."""
    if not 0 < given.threshold < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, not {given.threshold:g}")
    if not 0 <= given.median <= 60:
        raise UserError(f"--median: expected 0 to 60 seconds, not {given.median:g}")
    from framekd.inference import chosen_device
    from framekd.labels.tsv import read_annotations
    from framekd.published import open_model
    from framekd.recordings import locate
    from framekd.scoring import clip_classes, known_labels, score_files

    labels = read_annotations(given.labels)
    files = locate(labels, given.audio, ignore_missing=given.ignore_missing)
    model, spec = open_model(given.model, device=chosen_device(given.device))
    classes = spec["classes"] if labels.timed else clip_classes(model, spec)
    labels = known_labels(labels.select(files), classes, ignore_unknown=given.ignore_unknown)
    scores = score_files(
        model,
        spec,
        labels,
        files,
        durations=given.durations,
        threshold=given.threshold,
        median_seconds=given.median,
        progress=sys.stderr.isatty(),
    )
    print(_text(scores))
    if given.out:
        _write(scores, Path(given.out), model=str(given.model))
        print(f"{given.out}: scores.csv, scores.html", file=sys.stderr)
    return 0


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cells(scores: Any) -> list[list[str]]:
    table = scores.per_class
    whole = {name: table[name].dtype.kind != "f" for name in table}
    return [[str(row[n]) if whole[n] else _percent(row[n]) for n in table] for _, row in table.iterrows()]


def _text(scores: Any) -> str:
    """The table of the classes, and below it the scores over all."""
    import pandas as pd

    table = pd.DataFrame(_cells(scores), columns=list(scores.per_class))
    lines = [table.to_string(index=False), ""]
    width = max(len(TITLES[name]) for name in scores.overall)
    return "\n".join(lines + [f"{TITLES[name]:{width}}  {_percent(v):>5} %" for name, v in scores.overall.items()])


def _write(scores: Any, folder: Path, *, model: str) -> None:
    import jinja2
    import pandas as pd

    overall = pd.DataFrame([{"class": "(all)", **scores.overall}])
    table = pd.concat([overall, scores.per_class], ignore_index=True)
    whole = [name for name in scores.per_class if scores.per_class[name].dtype.kind == "i"]
    text = table.astype(dict.fromkeys(whole, "Int64")).to_csv(index=False, float_format="%.6f", lineterminator="\n")
    loader = jinja2.PackageLoader("framekd", "templates")
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    html = page.get_template("scores.html.j2").render(
        title=f"{model} on {Path(scores.facts['labels']).name}",
        facts=list(scores.facts.items()),
        overall=[(TITLES[name], f"{_percent(value)} %") for name, value in scores.overall.items()],
        shown=[name.replace("_", " ") for name in scores.shown],
        bars=[
            {"name": row["class"], "values": [_percent(row[name]) for name in scores.shown]}
            for _, row in scores.per_class.iterrows()
        ],
        columns=[name.replace("_", " ") for name in scores.per_class],
        rows=_cells(scores),
        explanation=EVENTS if "psds1" in scores.overall else CLIPS,
    )
    write_text(folder / "scores.csv", text)
    write_text(folder / "scores.html", html)
