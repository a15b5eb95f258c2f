"""The command line: detect events in your own files, and check the machine before a long run."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framekd.config import Config, UserError, load_files
from framekd.files import replacing, write_json

FORMATS = ("tsv", "json", "audacity")
COLUMNS = ("onset", "offset", "event_label", "score")


def parser() -> argparse.ArgumentParser:
    """The argument parser of `framekd`."""
    out = argparse.ArgumentParser(prog="framekd", description=__doc__)
    commands = out.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="detect events in audio files of any format and length")
    predict.add_argument("files", nargs="+", metavar="FILE")
    predict.add_argument("--checkpoint", required=True, help="a checkpoint directory: model.safetensors and spec.json")
    predict.add_argument("--out", help="folder for the results (default: beside each file)")
    predict.add_argument("--threshold", type=float, default=0.5, help="probability above which a class is active (0.5)")
    predict.add_argument("--median", type=float, default=0.48, help="length of the median filter in seconds (0.48)")
    predict.add_argument("--format", default="tsv", help="comma-separated: tsv, json, audacity (tsv)")
    predict.add_argument("--plot", action="store_true", help="also write a picture of the scores")
    doctor = commands.add_parser("doctor", help="check the environment and the configured data before a long run")
    doctor.add_argument("--configfile", nargs="*", default=[], help="differences from config/config.yaml")
    explain = commands.add_parser("explain", help="which job made a result, and what has changed since")
    explain.add_argument(
        "results", nargs="+", metavar="RESULT", help="a file or checkpoint folder; of two, the difference"
    )
    explain.add_argument("--configfile", nargs="+", default=[], help="differences from config/config.yaml")
    explain.add_argument("--deep", action="store_true", help="all ancestors, not only the parents")
    compare = commands.add_parser("compare", help="which of the paper's numbers and claims a table shows")
    compare.add_argument("table", metavar="TABLE", help="table1.csv, teachers.csv or table2.csv of a run")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. An error of the user or the system is one sentence on stderr, code 1."""
    given = parser().parse_args(arguments)
    try:
        return {"predict": predict, "doctor": doctor, "explain": explain, "compare": compare}[given.command](given)
    except (UserError, OSError) as error:
        print(f"framekd: {error}", file=sys.stderr)
        return 1


def predict(given: argparse.Namespace) -> int:
    """Detect events in each file. A file that cannot be read is reported and skipped, and the exit code is 1."""
    formats = given.format.split(",")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
    if not 0 < given.threshold < 1:
        raise UserError(f"--threshold: expected a probability between 0 and 1, not {given.threshold:g}")
    from framekd.audio import DecodeError
    from framekd.checkpoints import load_checkpoint
    from framekd.metrics import median_filter
    from framekd.predict import predict_file

    model, spec = load_checkpoint(given.checkpoint)
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


def doctor(given: argparse.Namespace) -> int:
    """Print what would stop a long run; the exit code is 1 if anything would."""
    config = load_files(*given.configfile) if given.configfile else Config()
    problems = [*_environment(config), *_data(config), *_checkpoints(config)]
    for sentence in problems:
        print(f"- {sentence}")
    print("framekd doctor: " + (f"{len(problems)} problems" if problems else "nothing is in the way"))
    return int(bool(problems))


def _environment(config: Config) -> list[str]:
    import torch
    import torchaudio

    from framekd import audio, download

    out = [*audio.problems()]
    if torch.__version__.split("+")[0].rsplit(".", 1)[0] != torchaudio.__version__.split("+")[0].rsplit(".", 1)[0]:
        out.append(
            f"torch {torch.__version__} and torchaudio {torchaudio.__version__} do not belong together; make env"
        )
    if config.audioset.download.enabled and config.miniature is None:
        out += download.problems(config.audioset.download)
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        out.append("tracking.tensorboard: tensorboard is not installed; pip install framekd[monitor]")
    if config.tracking.wandb and importlib.util.find_spec("wandb") is None:
        out.append("tracking.wandb: Weights & Biases is not installed; pip install wandb")
    return out


def _data(config: Config) -> list[str]:
    out = [
        f"audioset.folders: {folder} does not exist" for folder in config.audioset.folders if not Path(folder).is_dir()
    ]
    out += [f"audioset.hdf5: {file} does not exist" for file in config.audioset.hdf5 if not Path(file).exists()]
    if config.audioset.labels_dir and not Path(config.audioset.labels_dir).is_dir():
        out.append(f"audioset.labels_dir: {config.audioset.labels_dir} does not exist")
    for name in config.settings:
        student = config.setting(name).student
        path = student.soft_labels.path if student and student.soft_labels else None
        if path and not Path(path).is_file():
            out.append(f"settings.{name}.student.soft_labels: {path} does not exist")
    return out


def _checkpoints(config: Config) -> list[str]:
    """Problems of the published checkpoints that the run starts from: no address, one name for two, a wrong sum."""
    from framekd.fetch import check_sum

    step1 = config.models if config.step1.source == "external" else []
    step2 = [model for model in config.models if model not in config.step2_trained]
    wanted = [(f"step1.external.{m}", config.step1.external.get(m)) for m in step1]
    wanted += [(f"step2.external.{m}", config.step2.external.get(m)) for m in step2]
    out, seen = [], dict[Path, str]()
    for key, external in wanted:
        if external is None or not external.url:
            out.append(f"{key}: no address; write url: https://…/file.pt")
            continue
        path = Path(config.data_dir) / "checkpoints" / external.url.rsplit("/", 1)[-1]
        if seen.setdefault(path, external.url) != external.url:
            out.append(f"{key}: another address ends in {path.name} too, and both would be kept as {path}")
        elif path.is_file() and external.sha256:
            try:
                check_sum(path, external.sha256, "remove it to fetch it again")
            except UserError as error:
                out.append(f"{key}: {error}")
    return out


def explain(given: argparse.Namespace) -> int:
    """Print which job made a result and what has changed since; of two results, what differs."""
    from framekd import explain

    if len(given.results) > 2:
        raise UserError(f"explain takes one result or two, not {len(given.results)}")
    config = explain.configuration(given.configfile)
    if len(given.results) == 2:
        first, second = given.results
        print(explain.pair_text(explain.explain_pair(first, second, config)))
        return 0
    found = explain.explain(given.results[0], config, deep=given.deep)
    found.rerun = explain.ask_snakemake(given.results[0], given.configfile)
    print(explain.text(found, deep=given.deep))
    return 0


def compare(given: argparse.Namespace) -> int:
    """Print which of the paper's numbers and claims a table shows."""
    from framekd.tables.claims import compare_table, comparison_text

    print(comparison_text(compare_table(given.table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
