"""Weights in and out: our checkpoint directories, the published files, and fetching those.

A checkpoint directory holds `model.safetensors` (nothing but tensors) and `spec.json`: what rebuilds the model, its
class lists in order, sample rate, frame length, front end, where it came from, and the SHA-256 of the weights.
"""

import argparse
import hashlib
import io
import json
import pickle
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from framekd.config import UserError
from framekd.models import FrameModel, build_from_spec
from framekd.models.reference import load_reference

FORMAT = "framekd-checkpoint-1"
WEIGHTS, SPEC = "model.safetensors", "spec.json"
HEADS = ("frame_head.", "clip_head.")
NOT_THE_ENCODERS = (
    "rnn_hidden",
    "rnn_layers",
    "dropout",
    "attention_dropout",
    "layerdrop",
)  # its weights do not depend on them

__all__ = [
    "fetch",
    "load_checkpoint",
    "load_encoder",
    "load_reference",
    "read_spec",
    "read_weights",
    "save_checkpoint",
    "sha256_of",
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
    """Write `model` and all that is needed to use it into `directory`; returns the directory.

    classes: names of the frame head's outputs, in order.  clip_classes: those of the clip head, if they are others.
    provenance: JSON-able facts (step, seed, configuration …).  extra: further JSON-able content.
    Both files are written aside and then renamed, the weights first; a pair that does not match is refused on loading.
    """
    directory = Path(directory)
    if len(classes) != model.n_classes:
        raise UserError(f"{directory}: {len(classes)} class names for a frame head of {model.n_classes} outputs.")
    if clip_classes is not None and len(clip_classes) != model.n_clip_classes:
        raise UserError(f"{directory}: {len(clip_classes)} names for a clip head of {model.n_clip_classes} outputs.")
    if clip_classes is None and model.n_clip_classes == model.n_classes:
        clip_classes = classes
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    directory.mkdir(parents=True, exist_ok=True)
    weights, spec = directory / WEIGHTS, directory / SPEC
    aside = weights.with_suffix(".part")
    safetensors.torch.save_file(tensors, aside, metadata={"format": "pt"})
    content = {
        "format": FORMAT,
        **model.spec(),
        "classes": list(classes),
        "clip_classes": None if clip_classes is None else list(clip_classes),
        "provenance": dict(provenance),
        "extra": dict(extra or {}),
        "weights_sha256": sha256_of(aside),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    aside.replace(weights)
    write_text(spec, text)
    return directory


def read_spec(directory: str | Path) -> dict[str, Any]:
    """The specification in a checkpoint directory; UserError says which file is missing or damaged."""
    path = Path(directory) / SPEC
    if not path.is_file():
        raise UserError(f"There is no checkpoint in {directory}: it has no {SPEC}.")
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); make or copy the checkpoint again.") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise UserError(f"{path} is not a specification of format {FORMAT}; this version cannot read the checkpoint.")
    return spec


def load_checkpoint(
    directory: str | Path, *, heads: bool = True, device: str | torch.device = "cpu"
) -> tuple[FrameModel, dict[str, Any]]:
    """The model in a checkpoint directory, in eval mode, and its specification.

    heads=False leaves the heads as a new model has them (give it `new_heads`).  Refuses, in one sentence, weights that
    are not those of the specification, and a front end, sample rate or frame length that are not this code's.
    """
    spec = read_spec(directory)
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
    """Copy the encoder of a checkpoint into `model` (to start Step 3 from Step 2); returns its specification.

    The encoders must agree in architecture, sizes and front end; sequence model and heads stay as they are.
    """
    spec = read_spec(directory)
    ours = model.spec()
    for key in ("model", "sample_rate", "frame_seconds", "front_end"):
        if spec.get(key) != ours[key]:
            raise UserError(f"{directory} holds an encoder with {key} {spec.get(key)!r}, not {ours[key]!r}.")
    theirs = spec.get("sizes", {})
    other = [k for k, v in ours["sizes"].items() if k not in NOT_THE_ENCODERS and theirs.get(k, v) != v]
    if other:
        sizes = f"{other[0]} {theirs[other[0]]!r}, not {ours['sizes'][other[0]]!r}"
        raise UserError(f"{directory} holds a {model.name} with {sizes}; build the model with the sizes in its {SPEC}.")
    tensors = verified_weights(directory, spec)
    wanted = {n: v for n, v in model.state_dict().items() if n.startswith("encoder.")}
    found = {n: v for n, v in tensors.items() if n.startswith("encoder.")}
    copy_exactly(wanted, found, f"{directory}/{WEIGHTS}")
    return spec


def verified_weights(directory: str | Path, spec: Mapping[str, Any]) -> dict[str, Tensor]:
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
    """Copy all tensors, or none: names and shapes must be the same."""
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


def read_weights(path: str | Path) -> dict[str, Any]:
    """The tensors of a .safetensors, .pt, .pth or .ckpt file (or of the one such file in a .zip), on the CPU.

    Nothing in a file is ever executed: a pickle that asks for code is refused.  UserError says what is wrong.
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
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training options, plain data
            content = torch.load(opened(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = "it holds more than tensors and plain data, so loading it would run its code"
            raise UserError(f"{path} is refused: {reason}. Export a plain state dict instead.") from error
        raise UserError(f"{damaged} ({first_line(error)}); fetch or copy it again.") from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{damaged} ({first_line(error)}); fetch or copy it again.") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    return dict(content)


def opened(path: Path) -> Path | io.BytesIO:
    """The file itself; of a .zip archive (not torch's own kind), the one weights file in it."""
    if path.suffix != ".zip":
        return path
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith((".pth", ".pt", ".ckpt"))]
        if len(members) != 1:
            raise UserError(f"{path} holds {len(members)} weights files instead of one; unpack the one you mean.")
        return io.BytesIO(archive.read(members[0]))


def fetch(
    url: str | None, path: str | Path, *, sha256: str | None = None, attempts: int = 3, timeout: float = 60.0
) -> Path:
    """Make sure that `path` exists: as it is, or downloaded from `url`; returns it.

    A file that is there already (dropped in by hand, say) is accepted.  sha256: the pinned sum, checked either way;
    without one the sum is recorded in `path`.sha256, and a later change of the file is refused.  A broken download goes
    on where it stopped (`path`.part) and is renamed when complete.  UserError: one sentence, with what to put where.
    """
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        by_hand = f"put the file there by hand as {path}"
        if not url:
            raise UserError(f"{path} is absent and no address is configured for it: {by_hand}.")
        part = path.with_name(path.name + ".part")
        for attempt in range(attempts):
            try:
                download(url, part, timeout)
                break
            except (urllib.error.URLError, OSError, ValueError) as error:
                if attempt == attempts - 1:
                    raise UserError(f"{url} could not be fetched ({error}): {by_hand}, or try again.") from error
        check_sum(part, sha256, by_hand)
        part.replace(path)
        part.with_name(part.name + ".tag").unlink(missing_ok=True)
    record = path.with_name(path.name + ".sha256")
    expected = sha256 or (record.read_text().split()[0] if record.is_file() else None)
    digest = check_sum(path, expected, f"remove it to fetch it again, or {record.name} if the change is meant")
    write_text(record, f"{digest}  {path.name}\n")
    return path


def download(url: str, part: Path, timeout: float) -> None:
    """Append what is missing to `part`; raises OSError when the answer ends early."""
    tag = part.with_name(part.name + ".tag")
    request = urllib.request.Request(url)
    if part.is_file() and tag.is_file():  # resume only what the server still vouches for
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", tag.read_text())
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to resume: what is there is not this file's beginning
            part.unlink(missing_ok=True)
        raise
    with answer:
        resumed = answer.status == 206
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if version:
            tag.write_text(version)
        else:
            tag.unlink(missing_ok=True)
        length = answer.headers.get("Content-Length")
        with part.open("ab" if resumed else "wb") as file:
            start = file.tell()
            shutil.copyfileobj(answer, file, 1 << 20)
            got = file.tell() - start
    if length is not None and got != int(length):
        raise OSError(f"the connection ended after {got} of {length} bytes")


def check_sum(path: Path, expected: str | None, remedy: str) -> str:
    digest = sha256_of(path)
    if expected and digest != expected.lower():
        raise UserError(f"{path} has SHA-256 {digest}, expected {expected.lower()}: {remedy}.")
    return digest


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".aside")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
