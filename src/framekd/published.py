"""Models by name: the authors' published checkpoints, checkpoint folders, and runs of a results folder."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from framekd import hub, releases
from framekd.checkpoints import SPEC, load_checkpoint, read_spec, read_weights, specification
from framekd.errors import UserError
from framekd.fetch import fetch
from framekd.labels import known_strong, known_weak
from framekd.models import FrameModel, WithoutDraws, build_model
from framekd.models.reference import load_reference, unwrap
from framekd.releases import Release

T = TypeVar("T")
NO_CLASSES = ("none",)
"""Class list of a head that is not trained."""


def open_model(name: str | Path, *, device: torch.device | str = "cpu") -> tuple[FrameModel, dict[str, Any]]:
    """Open a model.

    Args:
        name: a published model ("BEATs" is its Step 3 weights, "BEATs:weak" Step 2, "BEATs:ssl" Step 1), which is
            fetched once; a checkpoint folder (model.safetensors and spec.json); or the folder of a run's seeds, whose
            first is taken; or a checkpoint on the Hugging Face hub (hf:USER/NAME).
        device: where the model is placed.
    Returns:
        The model in evaluation mode, and its specification (`classes` are the frame head's outputs in order).
    Raises:
        UserError: there is no such model, it cannot be fetched, or its files are damaged.
    """
    name = hub.resolve(name)
    release = releases.named(name) if isinstance(name, str) else None
    model, spec = _open_release(release) if release else load_checkpoint(checkpoint_folder(name))
    return model.to(device).eval(), spec


def open_detector(name: str | Path, *, device: torch.device | str = "cpu") -> tuple[FrameModel, dict[str, Any]]:
    """Open a model as :func:`open_model` does; UserError if its frame predictions are not trained."""
    name = hub.resolve(name)
    release = releases.named(name) if isinstance(name, str) else None
    if release is None:
        spec = read_spec(checkpoint_folder(name))
        about, classes = spec.get("model"), spec.get("classes")
    else:
        about, classes = release.model, list(NO_CLASSES) if release.variant != "strong" else None
    if classes == list(NO_CLASSES):
        instead = f"--model {about}" if about in releases.MODELS else "a published model (framekd models)"
        raise UserError(
            f"{name}: detects nothing, because only its encoder is trained (a checkpoint of Step 1 or Step 2); "
            f"use {instead}, or the folder of a student or teacher of a run, such as results/students/proposed/BEATs."
        )
    return open_model(name, device=device)


def checkpoint_folder(name: str | Path) -> Path:
    """The folder of a checkpoint: `name` itself, or its first seed, which is said on stderr.

    Raises:
        UserError: there is no such folder, or it holds the seeds of several models.
    """
    path = Path(name)
    if (path / SPEC).is_file():
        return path
    if not path.is_dir():
        if "/" in str(name) or path.exists():
            raise UserError(f"There is no checkpoint in {path}: it has no {SPEC}.")
        raise releases.unknown(str(name))
    seeds = sorted((spec.parent for spec in path.glob(f"seed*/{SPEC}")), key=_number)
    if seeds:
        if len(seeds) > 1:
            print(f"framekd: {path} has {len(seeds)} seeds; {seeds[0].name} is used", file=sys.stderr)
        return seeds[0]
    inside = sorted({spec.parent for depth in ("*", "*/seed*") for spec in path.glob(f"{depth}/{SPEC}")})
    if inside:
        raise UserError(f"{path} holds {len(inside)} checkpoints; give one of them, such as {inside[0]}.")
    raise UserError(f"There is no checkpoint in {path}: it has no {SPEC}.")


def _number(folder: Path) -> tuple[int, str]:
    digits = re.sub(r"\D", "", folder.name)
    return int(digits or 0), folder.name


# -- the authors' files ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authors:
    """A model with the weights of an authors' file.

    Attributes:
        classes, clip_classes: names of the outputs; :data:`NO_CLASSES` where the file has no head.
        clip_head: how many classes the file's clip head has, or why it is not used.
    """

    model: FrameModel
    classes: Sequence[str]
    clip_classes: Sequence[str]
    clip_head: str


def from_authors(
    name: str,
    state: Mapping[str, object],
    variant: str,
    *,
    sizes: Mapping[str, Any] | None = None,
    front_end: Mapping[str, Any] | None = None,
) -> Authors:
    """Build a model from the content of an authors' file.

    Args:
        name: architecture.
        state: content of the file.
        variant: "strong" (frame and clip heads of the 447 strong classes), "weak" (a clip head of the 527 weak
            classes) or "ssl" (no head). A clip head that is absent or has other classes is left out.
        sizes, front_end: see :func:`framekd.models.build_model`.
    Raises:
        UserError: the weights do not fit, or a "strong" file has no frame head of the 447 classes.
    """
    about: dict[str, Any] = {"sizes": sizes, "front_end": front_end}
    strong, weak = known_strong()[0].names, known_weak().names
    classes = strong if variant == "strong" else NO_CLASSES
    clip_classes = {"strong": strong, "weak": weak, "ssl": NO_CLASSES}[variant]
    with WithoutDraws():
        width = build_model(name, n_classes=1, **about).embed_dim
        if variant == "strong" and (problem := head_problem(state, "strong_head", len(strong), width)):
            raise UserError(f"These are not {name}'s weights of Step 3: {problem}.")
        problem = head_problem(state, "weak_head", len(clip_classes), width) if variant != "ssl" else "not trained"
        if problem:
            clip_classes = NO_CLASSES
        model = build_model(name, n_classes=len(classes), n_clip_classes=len(clip_classes), **about)
    for head in (model.frame_head, model.clip_head):  # those that the file lacks stay so
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    load_reference(model, state, heads="matching" if {*classes, *clip_classes} != {*NO_CLASSES} else False)
    return Authors(model, classes, clip_classes, problem or f"{len(clip_classes)} classes")


def head_problem(state: Mapping[str, object], head: str, classes: int, width: int) -> str | None:
    """Why a head of an authors' file cannot be used; None if it can.

    Args:
        state: content of the file.
        head: "strong_head" or "weak_head".
        classes: outputs that it should have.
        width: channels that it reads.
    """
    tensors = unwrap(state)
    if any(f"{head}.{part}" not in tensors for part in ("weight", "bias")):
        return "no head in the file"
    wanted, found = (classes, width), tuple(tensors[f"{head}.weight"].shape)
    return None if found == wanted else f"the head in the file is {list(found)}, not {list(wanted)}"


def _open_release(release: Release) -> tuple[FrameModel, dict[str, Any]]:
    """A release's model and specification. What comes is kept only if it is whole and of this model."""
    path, record = release.path, release.path.with_name(release.file + ".sha256")
    if path.is_file() and record.is_file():  # as from the second time on: no lock, and the folder may be read-only
        fetch(None, path)
        return _read_release(release)
    with _alone(path):
        if not path.is_file():
            size = f"{release.bytes / 1e6:.0f} MB"
            print(f"framekd: fetching {release.name} ({size}) from {release.url} to {path}", file=sys.stderr)
        return fetched(release.url, path, lambda _: _read_release(release), progress=True)


def fetched(url: str, path: Path, read: Callable[[Path], T], *, sha256: str | None = None, progress: bool = False) -> T:
    """Fetch a file unless it is there, and read it. What comes is kept only if it can be read.

    Args:
        url: where the file is.
        path: where it is kept.
        read: reads it; a UserError means that it is not the expected file.
        sha256: expected sum.
        progress: show a bar on stderr, if that is a terminal.
    Raises:
        UserError: the file cannot be fetched, or cannot be read.
    """
    record = path.with_name(path.name + ".sha256")
    come, new = not path.is_file(), not record.is_file()
    fetch(url, path, sha256=sha256, progress=progress)
    try:
        return read(path)
    except UserError as error:
        if new:  # its sum is not worth keeping
            record.unlink(missing_ok=True)
        if not come:
            raise
        path.unlink(missing_ok=True)
        raise UserError(
            f"{url}: what came is not the checkpoint and was removed ({error}) "
            f"Try again, or put the file there by hand as {path}."
        ) from error


def _read_release(release: Release) -> tuple[FrameModel, dict[str, Any]]:
    found = from_authors(release.model, read_weights(release.path), release.variant)
    source = {"release": release.name, "url": release.published, "licence": releases.LICENCE}
    return found.model, specification(found.model, found.classes, found.clip_classes, provenance=source)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file in the cache. Another process that fetches the file is waited for."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"framekd: waiting for another process that is fetching {path.name}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{path.parent}: models cannot be kept there ({error.strerror}); "
            "set FRAMEKD_CACHE to a folder that you can write to."
        ) from error
    try:
        yield
    finally:
        lock.release()
