"""`framekd finetune`: train a model on one's own labels."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path
from typing import Any

from framekd.errors import UserError


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("finetune", help="train a model on labels of your own")
    out.set_defaults(run=finetune)
    out.add_argument("--model", required=True, help="where to start: a published model or a checkpoint folder")
    out.add_argument(
        "--train", required=True, help="TSV: filename, onset, offset, event_label; or filename, event_labels"
    )
    out.add_argument("--audio", required=True, help="folder of the recordings")
    out.add_argument("--valid", help="TSV of the same kind; decides which weights are kept and when to stop")
    out.add_argument("--valid-audio", help="folder of the recordings of --valid (default: that of --audio)")
    out.add_argument("--out", required=True, help="folder of the new checkpoint")
    out.add_argument("--frozen", action="store_true", help="train new heads alone, not the transformer")
    out.add_argument("--epochs", type=int, help="passes over the recordings (30; 100 with --frozen)")
    out.add_argument("--learning-rate", type=float, help="peak learning rate (1e-4; 1e-3 with --frozen)")
    out.add_argument("--layer-decay", type=float, help="factor on the learning rate per layer, from the top (0.5)")
    out.add_argument("--batch-size", type=int, help="cuts of 10 s per step (32)")
    out.add_argument("--patience", type=int, default=10, help="validations without a lower loss before the end (10)")
    out.add_argument("--seed", type=int, default=1, help="of the new heads and the order of the clips (1)")
    out.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 (auto)")
    out.add_argument("--ignore-missing", action="store_true", help="leave out labelled files that are not there")


def finetune(given: argparse.Namespace) -> int:
    """Train, and write a checkpoint that predict, evaluate and embed accept."""
    out = Path(given.out)
    if out.is_file() or (out / "spec.json").exists():
        raise UserError(f"--out {out}: there is a checkpoint or a file already; name another folder or remove it")
    _check(given)
    from framekd.inference import chosen_device
    from framekd.labels.tsv import Annotations, read_annotations
    from framekd.published import open_model
    from framekd.recordings import locate
    from framekd.tasks.finetune import Recordings
    from framekd.tasks.finetune import finetune as train
    from framekd.train import Diverged, Stopped

    tables = [read_annotations(table) for table in (given.train, given.valid) if table]
    listed = {name for labels in tables for name in labels.files}

    def recordings(labels: Annotations, folder: str, listed: set[str] | None) -> Recordings:
        files = locate(labels, folder, ignore_missing=given.ignore_missing, listed=listed)
        return Recordings(labels.select(files), files)

    training = recordings(tables[0], given.audio, listed)
    # Audio without labels is counted once per folder.
    other = given.valid_audio or given.audio
    valid = recordings(tables[1], other, listed if other != given.audio else None) if given.valid else None
    if valid is not None:
        _compare(training.labels, valid.labels)
    device = chosen_device(given.device)
    model, spec = open_model(given.model)
    changes = {key: getattr(given, key) for key in ("epochs", "learning_rate", "layer_decay", "batch_size")}
    before = signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))  # Ctrl-C saves the state
    try:
        result = train(
            model,
            spec,
            training,
            out,
            valid=valid,
            frozen=given.frozen,
            changes=changes,
            patience=given.patience,
            seed=given.seed,
            device=device,
        )
    except Stopped as stop:
        print(f"framekd: {stop}; the same command continues it", file=sys.stderr)
        return int(stop.code or 1)
    except Diverged as error:
        raise UserError(f"{error}; write, for instance, --learning-rate 1e-5") from None
    finally:
        signal.signal(signal.SIGINT, before)
    last = [line for line in result.history if line["step"] == result.kept_step]
    shown = ", ".join(f"{key} {value:.3f}" for line in last for key, value in line.items() if key.startswith("val/"))
    kept = "the last weights" if valid is None else f"the weights of step {result.kept_step} of {result.steps}"
    print(f"{out}: {len(training.labels.counts())} classes; {kept}{': ' + shown if shown else ''}")
    return 0


def _check(given: argparse.Namespace) -> None:
    for key, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("seed", 0)):
        value = getattr(given, key)
        if value is not None and value < least:
            raise UserError(f"--{key.replace('_', '-')}: expected a whole number of at least {least}, not {value}")
    for key, most in (("learning_rate", math.inf), ("layer_decay", 1.0)):
        value = getattr(given, key)
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            raise UserError(f"--{key.replace('_', '-')}: expected a positive number, not {value:g}")
    if given.frozen and given.layer_decay is not None:
        raise UserError("--layer-decay acts on the transformer, which --frozen does not train; give one of the two")
    if given.valid_audio and not given.valid:
        raise UserError("--valid-audio needs --valid: the labels of these recordings")


def _compare(train: Any, valid: Any) -> None:
    """Whether the labels of training and validation fit together."""
    from framekd.labels.tsv import unknown_classes
    from framekd.recordings import note, some

    if train.timed != valid.timed:
        kinds = ("clip labels", "events")
        raise UserError(
            f"{train.path} has {kinds[train.timed]} and {valid.path} {kinds[valid.timed]}; give two tables of one kind"
        )
    have, wanted = valid.counts(), train.counts()
    if strange := unknown_classes(have, wanted):
        raise UserError(f"{valid.path}: {len(set(have) - set(wanted))} classes have no training example: {strange}")
    if absent := sorted(set(wanted) - set(have)):
        note(f"{valid.path}: {len(absent)} of {len(wanted)} classes have no example and are not judged: {some(absent)}")
    if both := [name for name in valid.files if name in set(train.files)]:
        note(f"{len(both)} of {len(valid.files)} files of {valid.path} are in {train.path} too ({some(both)})")
