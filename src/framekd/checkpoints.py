"""Reading and writing weights: this project's checkpoint directories, and the published files.

A checkpoint directory holds `model.safetensors` (only tensors) and `spec.json`: architecture and sizes, class lists in
order, sample rate, frame length, front end, provenance, and the SHA-256 of the weights and of itself.
"""

import argparse
import contextlib
import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from framekd.config import UserError
from framekd.fetch import fetch
from framekd.files import replacing, sha256_of, write_json, write_text
from framekd.models import FrameModel, WithoutDraws, build_from_spec
from framekd.models.reference import load_reference

FORMAT = "framekd-checkpoint-1"
WEIGHTS, SPEC = "model.safetensors", "spec.json"
SPEC_SUM = "spec_sha256"
HEADS = ("frame_head.", "clip_head.")
MOST_EXPANSION = 20
"""Times its size that an archive of weights may unpack to."""
OTHER_SIZES = ("rnn_hidden", "rnn_layers", "dropout", "attention_dropout", "layerdrop")
"""Sizes that the encoder's weights do not depend on."""

__all__ = [
    "fetch",
    "load_checkpoint",
    "load_encoder",
    "load_reference",
    "read_spec",
    "read_weights",
    "save_checkpoint",
    "specification",
    "write_text",
]


# -- our own format --------------------------------------------------------------------------------------------------


def save_checkpoint(
    directory: str | Path,
    model: FrameModel,
    *,
    classes: Sequence[str],
    provenance: Mapping[str, Any],
    clip_classes: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` and what is needed to use it into `directory`.

    Each file is written whole, the weights first; a pair that does not match is refused on loading.

    Args:
        classes: names of the frame head's outputs, in order.
        provenance: facts about the training (step, seed, configuration, …), JSON-serialisable.
        clip_classes: names of the clip head's outputs, if they differ from `classes`.
        extra: further JSON-serialisable content.
    Returns:
        `directory`.
    Raises:
        UserError: a class list does not fit its head, or the disk is full.
    """
    directory = Path(directory)
    if len(classes) != model.n_classes:
        raise UserError(f"{directory}: {len(classes)} class names for a frame head of {model.n_classes} outputs.")
    if clip_classes is not None and len(clip_classes) != model.n_clip_classes:
        raise UserError(f"{directory}: {len(clip_classes)} names for a clip head of {model.n_clip_classes} outputs.")
    if clip_classes is None and model.n_clip_classes == model.n_classes:
        clip_classes = classes
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = specification(model, classes, clip_classes, provenance=provenance, extra=extra)
    with replacing(directory / WEIGHTS) as aside:
        safetensors.torch.save_file(tensors, aside, metadata={"format": "pt"})
        content["weights_sha256"] = sha256_of(aside)
    write_json(directory / SPEC, {**content, SPEC_SUM: _sum_of(content)})
    return directory


def specification(
    model: FrameModel,
    classes: Sequence[str],
    clip_classes: Sequence[str] | None,
    *,
    provenance: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `spec.json` holds beside its sums; arguments as for :func:`save_checkpoint`."""
    return {
        "format": FORMAT,
        **model.spec(),
        "classes": list(classes),
        "clip_classes": None if clip_classes is None else list(clip_classes),
        "provenance": dict(provenance),
        "extra": dict(extra or {}),
    }


def _sum_of(spec: Mapping[str, Any]) -> str:
    """SHA-256 of a specification without this sum itself; spaces and the order of keys do not count."""
    content = json.loads(json.dumps({key: value for key, value in spec.items() if key != SPEC_SUM}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_spec(directory: str | Path) -> dict[str, Any]:
    """Read the specification in a checkpoint directory.

    Raises:
        UserError: the file is missing, damaged, changed or of another format.
    """
    path = Path(directory) / SPEC
    if not path.is_file():
        raise UserError(f"There is no checkpoint in {directory}: it has no {SPEC}.")
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); make or copy the checkpoint again.") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise UserError(f"{path} is not a specification of format {FORMAT}; this version cannot read the checkpoint.")
    if SPEC_SUM in spec and spec[SPEC_SUM] != _sum_of(spec):  # checkpoints of earlier versions have none
        raise UserError(
            f"{path} was changed after it was written (its {SPEC_SUM} differs), so that its class names may be wrong; "
            f"copy the checkpoint again, or remove the entry {SPEC_SUM} if the change is meant."
        )
    return spec


def load_checkpoint(
    directory: str | Path, *, heads: bool = True, device: str | torch.device = "cpu"
) -> tuple[FrameModel, dict[str, Any]]:
    """Read a checkpoint directory.

    Args:
        heads: False keeps the heads of a new model (initialise them with `new_heads`).
        device: where the model is placed.
    Returns:
        The model in evaluation mode, and its specification.
    Raises:
        UserError: the weights do not fit the specification, or its front end, sample rate or frame length are not
            those of this version.
    """
    spec = read_spec(directory)
    with WithoutDraws() if heads else contextlib.nullcontext():
        model = build_from_spec(spec)
    for key, count in (("classes", model.n_classes), ("clip_classes", model.n_clip_classes)):
        if spec.get(key) is not None and len(spec[key]) != count:
            raise UserError(f"{directory}/{SPEC} names {len(spec[key])} {key} for {count} outputs.")
    tensors = verified_weights(directory, spec)
    wanted = {n: v for n, v in model.state_dict().items() if heads or not n.startswith(HEADS)}
    found = {n: v for n, v in tensors.items() if heads or not n.startswith(HEADS)}
    copy_exactly(wanted, found, f"{directory}/{WEIGHTS}")
    return model.to(device).eval(), spec


def load_encoder(model: FrameModel, directory: str | Path) -> dict[str, Any]:
    """Copy the encoder of a checkpoint into `model`, to start Step 3 from Step 2.

    The sequence model and the heads of `model` are not changed.

    Returns:
        The specification of the checkpoint.
    Raises:
        UserError: the encoders differ in architecture, sizes or front end.
    """
    spec = read_spec(directory)
    ours = model.spec()
    for key in ("model", "sample_rate", "frame_seconds", "front_end"):
        if spec.get(key) != ours[key]:
            raise UserError(f"{directory} holds an encoder with {key} {spec.get(key)!r}, not {ours[key]!r}.")
    theirs = spec.get("sizes", {})
    other = [k for k, v in ours["sizes"].items() if k not in OTHER_SIZES and theirs.get(k, v) != v]
    if other:
        sizes = f"{other[0]} {theirs[other[0]]!r}, not {ours['sizes'][other[0]]!r}"
        raise UserError(f"{directory} holds a {model.name} with {sizes}; build the model with the sizes in its {SPEC}.")
    tensors = verified_weights(directory, spec)
    wanted = {n: v for n, v in model.state_dict().items() if n.startswith("encoder.")}
    found = {n: v for n, v in tensors.items() if n.startswith("encoder.")}
    copy_exactly(wanted, found, f"{directory}/{WEIGHTS}")
    return spec


def verified_weights(directory: str | Path, spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the weights in a checkpoint directory; UserError if they are not those that `spec` was written for."""
    path = Path(directory) / WEIGHTS
    tensors = read_weights(path)
    if sha256_of(path) != spec.get("weights_sha256"):
        raise UserError(
            f"{path} is not the file that {SPEC} beside it was written for (its SHA-256 differs); "
            "copy both files of the checkpoint again."
        )
    return tensors


@torch.no_grad()
def copy_exactly(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Copy all tensors, or none (UserError) if names or shapes differ."""
    problems = []
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"has no {missing[0]} ({len(missing)} missing)")
    if unexpected := [name for name in found if name not in wanted]:
        problems.append(f"has {unexpected[0]}, which the model lacks ({len(unexpected)} unexpected)")
    shapes = [name for name in wanted if name in found and wanted[name].shape != found[name].shape]
    if shapes:
        name = shapes[0]
        problems.append(f"has {name} as {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}")
    if problems:
        raise UserError(f"{where} does not fit the model: it {', '.join(problems)}.")
    for name, value in wanted.items():
        value.copy_(found[name])


# -- published files -------------------------------------------------------------------------------------------------


UNREADABLE = (
    *(RuntimeError, EOFError, zipfile.BadZipFile, ValueError, LookupError, AttributeError, OSError),
    *(TypeError, AssertionError, ArithmeticError, struct.error),
)
"""What torch raises of a damaged file; its unpickler checks little."""


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read the tensors of a .safetensors, .pt, .pth or .ckpt file, or of the only such file in a .zip, onto the CPU.

    Code in a file is never executed: a pickle that needs more than tensors and plain data is refused.

    Raises:
        UserError: the file is missing, damaged or refused.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no weights file {path}; put it there, or give another path.")
    damaged = f"{path} is damaged or incomplete"
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{damaged} ({error}); fetch or copy it again.") from error
    refuse_bomb(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training options, plain data
            content = torch.load(opened(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = "it holds more than tensors and plain data, so loading it would run its code"
            raise UserError(f"{path} is refused: {reason}. Export a plain state dict instead.") from error
        raise UserError(f"{damaged} ({first_line(error)}); fetch or copy it again.") from error
    except UNREADABLE as error:
        raise UserError(f"{damaged} ({first_line(error)}); fetch or copy it again.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return dict(content)


def refuse_bomb(path: Path) -> None:
    """UserError for an archive that unpacks to far more than it holds: weights hardly compress."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # whoever reads it says what is wrong
    if unpacked > MOST_EXPANSION * path.stat().st_size + (1 << 20):
        raise UserError(f"{path} would unpack to {unpacked / 1e9:.1f} GB, far more than weights do; fetch it again.")


def opened(path: Path) -> Path | io.BytesIO:
    """The file itself, or the only weights file in a .zip archive."""
    if path.suffix != ".zip":
        return path
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith((".pth", ".pt", ".ckpt"))]
        if len(members) != 1:
            raise UserError(f"{path} holds {len(members)} weights files instead of one; unpack the one you mean.")
        return io.BytesIO(archive.read(members[0]))


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
