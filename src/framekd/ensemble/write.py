"""The ensemble's logits, written in one streaming pass over the clips (Sec. 3.2)."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from framekd import checkpoints
from framekd.config import UserError
from framekd.data import ClipSet, chunks
from framekd.events import CLIP_FRAMES
from framekd.labels import ClassList, parse_clip_id
from framekd.predict import logits

Member = nn.Module | Path | str
"""A model, or a checkpoint directory."""


@torch.no_grad()
def write_ensemble(
    path: Path | str,
    members: Sequence[Member],
    clips: ClipSet,
    *,
    classes: ClassList,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    resident: bool = True,
    shard: int = 1024,
    progress: bool = True,
) -> Path:
    """Average the members' frame logits per class and frame over all `clips`, in their order, and write `path`.

    Sums are float32, the file float16. With `resident`, all members are in memory and the sum is one batch long;
    without, one member at a time goes over `shard` clips. Either way memory does not grow with the number of clips.
    A pass that was killed continues where it was; the file appears when it is whole. UserError if a checkpoint's
    classes are not `classes`, if a member is missing, or if another process writes this file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
    if not members:
        raise UserError(f"{path}: an ensemble needs at least one member")
    identity = _identity(members, clips, classes, precision)
    load = _loader(members, classes, device)
    step = batch_size if resident else max(shard, batch_size)
    held = [load(i) for i in range(len(members))] if resident else None
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{path} is being written by another process; wait for it, or end it first") from None
    try:
        target = _Target(path, identity, clips, classes)
        with tqdm(total=len(clips), initial=target.done, unit=" clips", desc=path.name, file=sys.stderr,
                  mininterval=1 if sys.stderr.isatty() else 60, disable=not progress) as bar:  # fmt: skip
            while target.done < len(clips):
                part = clips.select(range(target.done, min(target.done + step, len(clips))))
                total = np.zeros((len(part), len(classes), CLIP_FRAMES), np.float32)
                if held is None:
                    for i in range(len(members)):
                        _add(total, [load(i)], part, batch_size, device, precision)
                else:
                    _add(total, held, part, batch_size, device, precision)
                target.write(total / np.float32(len(members)))
                bar.update(len(part))
        target.publish()
    finally:
        lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    return path


def _add(
    total: np.ndarray, models: Sequence[nn.Module], part: ClipSet, batch_size: int, device: torch.device, precision: str
) -> None:
    """Add the models' logits of a part of the clips to `total`."""
    row = 0
    for batch in chunks(part, batch_size, prefetch=0):
        waveform = batch.waveform.to(device)
        here = total[row : row + len(waveform)]
        for model in models:
            frames, _ = logits(model, waveform, precision=precision)
            if frames.shape[1:] != total.shape[1:]:
                raise UserError(
                    f"a member gives {list(frames.shape[1:])} logits per clip, but the ensemble has "
                    f"{list(total.shape[1:])}; all members must be trained on the same classes"
                )
            here += frames.cpu().numpy()
        row += len(waveform)


def _loader(members: Sequence[Member], classes: ClassList, device: torch.device) -> Callable[[int], nn.Module]:
    def load(i: int) -> nn.Module:
        member = members[i]
        if isinstance(member, nn.Module):
            return member.to(device).eval()
        model, spec = checkpoints.load_checkpoint(member)
        names = _names(spec)
        if names is not None and names != list(classes.names):
            raise UserError(f"{member} was trained on other classes than those of the ensemble")
        return model.to(device).eval()

    return load


def _names(spec: Any) -> list[str] | None:
    """Display names of a specification's class list."""
    found = spec.get("classes") if isinstance(spec, dict) else getattr(spec, "classes", None)
    if found is None:
        return None
    if isinstance(found, ClassList):
        return list(found.names)
    if isinstance(found, dict):
        return list(found["names"])
    return [name if isinstance(name, str) else name[-1] for name in found]


def _identity(members: Sequence[Member], clips: ClipSet, classes: ClassList, precision: str) -> str:
    """What the logits depend on, hashed: a pass over other members or clips is not continued."""
    hasher = hashlib.blake2b(json.dumps([list(clips.ids), list(classes.mids), precision]).encode(), digest_size=16)
    for member in members:
        if isinstance(member, nn.Module):
            for name, value in member.state_dict().items():
                hasher.update(
                    name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        else:
            file = Path(member) / "model.safetensors"
            if not file.is_file():
                raise UserError(f"{file} is missing: train this member first, or take it out of the ensemble")
            with file.open("rb") as handle:
                hasher.update(hashlib.file_digest(handle, "blake2b").digest())
    return hasher.hexdigest()


class _Target:
    """The file in the making: its HDF5 structure is written first and then left alone; logits go to their place in
    the file, and a count beside it says how many are there. So a kill can spoil neither."""

    def __init__(self, path: Path, identity: str, clips: ClipSet, classes: ClassList) -> None:
        self.path, self.identity = path, identity
        self.file = path.with_name(f".{path.name}.partial")
        self.count = path.with_name(f".{path.name}.json")
        self.done = self._resumed()
        if self.done == 0:
            self._create(clips, classes)
        with h5py.File(self.file, "r") as file:
            self.offset = file["strong_logits"].id.get_offset()
        self.row_bytes = 2 * len(classes) * CLIP_FRAMES
        # Written through the file system, not a memory map: a full disk is then an error and not a dead process.
        self.handle = self.file.open("r+b")

    def _resumed(self) -> int:
        if not (self.count.is_file() and self.file.is_file()):
            return 0
        state = json.loads(self.count.read_text())
        return state["done"] if state["identity"] == self.identity else 0

    def _create(self, clips: ClipSet, classes: ClassList) -> None:
        self.count.unlink(missing_ok=True)
        with h5py.File(self.file, "w", libver="latest") as file:
            file["filenames"] = np.array(filenames(clips.ids), dtype="S")
            file["clip_ids"] = np.array([name.encode() for name in clips.ids], dtype="S")
            space = h5py.h5s.create_simple((len(clips), len(classes), CLIP_FRAMES))
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plan.set_obj_track_times(False)  # the same logits, the same bytes
            h5py.h5d.create(file.id, b"strong_logits", h5py.h5t.IEEE_F16LE, space, plan)
            file.attrs["classes"] = list(classes.names)
            file.attrs["class_ids"] = list(classes.mids)
            file.attrs["identity"] = self.identity

    def write(self, values: Float[np.ndarray, "n classes frames"]) -> None:
        """Append logits, and note that they are there once they are on the disk."""
        self.handle.seek(self.offset + self.done * self.row_bytes)
        self.handle.write(values.astype("<f2").tobytes())
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.done += len(values)
        aside = self.count.with_suffix(".json.partial")
        aside.write_text(json.dumps({"identity": self.identity, "done": self.done}))
        aside.replace(self.count)

    def publish(self) -> None:
        """Give the file its name."""
        self.handle.close()
        self.file.replace(self.path)
        self.count.unlink(missing_ok=True)


def filenames(ids: Sequence[str]) -> list[bytes]:
    """Names as the published file spells them, ``Y<ytid>.mp3``; clip ids where that would not tell two clips apart."""
    try:
        names = [f"Y{parse_clip_id(name)[0]}.mp3" for name in ids]
    except ValueError:  # no segments of YouTube videos
        names = list(ids)
    return [name.encode() for name in (names if len(set(names)) == len(names) else ids)]
