"""`framekd export`: a model as one ONNX or TorchScript file for other programs, with a card beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from framekd.errors import UserError

FORMATS = ("onnx", "torch")


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("export", help="write a model as one file for other programs, the front end inside")
    out.set_defaults(run=export)
    source = out.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a published name, a checkpoint folder, or hf:USER/NAME")
    source.add_argument("--from", dest="repository", metavar="USER/NAME", help="a model on the Hugging Face hub")
    out.add_argument("--format", choices=FORMATS, default="onnx", help="onnx, or torch: TorchScript (onnx)")
    out.add_argument("--out", required=True, metavar="FILE", help="file to write; its card is written beside it")
    out.add_argument("--licence", help="licence of the weights, such as MIT (default: what the checkpoint says)")
    out.add_argument("--push", metavar="USER/NAME", help="upload file, card and checkpoint to the Hugging Face hub")


def export(given: argparse.Namespace) -> int:
    """Write the file and its card, and print what was written."""
    path = Path(given.out)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, such as {path / ('model.' + given.format)}")
    from framekd import card, hub
    from framekd import export as files
    from framekd.published import NO_CLASSES, open_model

    if given.push:
        hub.check_name(given.push)
    name = hub.resolve(given.model or hub.PREFIX + given.repository)
    model, spec = open_model(name)
    if {*spec["classes"], *(spec.get("clip_classes") or ())} <= {*NO_CLASSES}:
        raise UserError(
            f"{name}: only its encoder is trained (a checkpoint of Step 1), so that no output means anything"
        )
    licence = given.licence or spec.get("licence") or (spec.get("provenance") or {}).get("licence")
    about = files.metadata(spec, licence or card.UNKNOWN)
    difference = files.export(model, path, given.format, about)
    size = path.stat().st_size / 1e6
    print(f"{path}: {size:.1f} MB; largest difference of a logit from the model's: {difference:.1e}", file=sys.stderr)
    written = card.write_card(
        path, spec, form=given.format, licence=licence, scores=card.scores_of(name), repository=given.push
    )
    print(f"{written}: the model card", file=sys.stderr)
    if given.push:
        print(hub.push(given.push, model, spec, [path], written))
    return 0
