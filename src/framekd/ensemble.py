"""The ensemble's logits, written in one pass over the clips (Sec. 3.2).

The file has the layout of the published pseudo-label file (Zenodo 14626113): ``filenames`` [clips] bytes and
``strong_logits`` [clips, classes, 250] float16. It also has the clip ids, and the class list as attributes. The logits
are one contiguous block, so a pass writes each batch to its place, and :class:`framekd.soft_labels.SoftLabels` reads
any clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from tqdm import tqdm

from framekd.checkpoints import load_checkpoint
from framekd.config import UserError
from framekd.data import ClipSet, chunks
from framekd.files import sync_folder, write_json
from framekd.inference import batch_logits, default_device
from framekd.labels import ClassList
from framekd.models import FrameModel
from framekd.soft_labels import is_segment, spellings
from framekd.units import CLIP_FRAMES
from framekd.versions import VERSIONS

Member = FrameModel | Path | str
"""A model, or the path of a checkpoint directory."""


def write_ensemble(
    path: Path | str,
    members: Sequence[Member],
    clips: ClipSet,
    *,
    classes: ClassList,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    progress: bool = True,
) -> Path:
    """Average the members' frame logits per class and frame over all `clips`, in their order, and write `path`.

    Sums are float32, the file is float16. Memory does not grow with the number of clips. An interrupted pass continues
    at the batch after the last one written, so its bytes are those of an uninterrupted pass.

    Args:
        path: the HDF5 file; it appears when it is complete.
        members: models or checkpoint directories, trained on `classes`.
        batch_size: clips per forward pass.
        device: the GPU if there is one, unless given.
        precision: "fp32", or "bf16" or "fp16" on a GPU.
        progress: show a progress bar.
    Returns:
        `path`.
    Raises:
        UserError: no members, a missing checkpoint, a member with other classes, or another process writes `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = default_device() if device is None else torch.device(device)
    if not members:
        raise UserError(f"{path}: an ensemble needs at least one member")
    identity = _identity(members, clips, classes, f"{precision}, {batch_size} clips, code {VERSIONS['ensemble']}")
    models = [_load(member, classes) for member in members]
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is writing {path}; wait for it, or end it first") from None
    try:
        target = _Target(path, identity, clips, classes, batch_size)
        with tqdm(total=len(clips), initial=target.done, unit=" clips", desc=path.name, file=sys.stderr,
                  mininterval=1 if sys.stderr.isatty() else 60, disable=not progress) as bar:  # fmt: skip
            while target.done < len(clips):
                part = clips.select(range(target.done, min(target.done + batch_size, len(clips))))
                total = np.zeros((len(part), len(classes), CLIP_FRAMES), np.float32)
                _add(total, models, part, batch_size, place, precision)
                target.write(total / np.float32(len(members)))
                bar.update(len(part))
        target.publish()
    finally:
        lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    return path


def _add(
    total: Float[np.ndarray, "clips classes frames"],
    models: Sequence[FrameModel],
    part: ClipSet,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> None:
    """Add the models' frame logits of the clips of `part` to `total`."""
    row = 0
    for batch, found in batch_logits(models, chunks(part, batch_size, prefetch=0), device=device, precision=precision):
        for frames, _ in found:
            if frames.shape[1:] != total.shape[1:]:
                raise UserError(
                    f"a member gives {list(frames.shape[1:])} logits per clip, but the ensemble has "
                    f"{list(total.shape[1:])}; all members must be trained on the same classes"
                )
            total[row : row + len(batch)] += frames.cpu().numpy()
        row += len(batch)


def _load(member: Member, classes: ClassList) -> FrameModel:
    """The model of a member; UserError if its checkpoint has other classes."""
    if not isinstance(member, Path | str):
        return member
    model, spec = load_checkpoint(member)
    if spec["classes"] != list(classes.names):
        raise UserError(f"{member} was trained on other classes than those of the ensemble")
    return model


def _identity(members: Sequence[Member], clips: ClipSet, classes: ClassList, how: str) -> str:
    """Hash of all that the logits depend on; a pass is continued only with the same one."""
    hasher = hashlib.blake2b(json.dumps([list(clips.ids), list(classes.mids), how]).encode(), digest_size=16)
    for member in members:
        if isinstance(member, Path | str):
            file = Path(member) / "model.safetensors"
            if not file.is_file():
                raise UserError(f"{file} is missing: train this member first, or take it out of the ensemble")
            with file.open("rb") as handle:
                hasher.update(hashlib.file_digest(handle, "blake2b").digest())
        else:
            for name, value in member.state_dict().items():
                flat = value.detach().cpu().contiguous().reshape(-1)
                hasher.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


class _Target:
    """The unfinished file, and a note beside it of how many clips it holds.

    The HDF5 structure is written first and never changed. Logits are then written to their place in the file, and
    counted once they are on the disk, so a kill damages neither file nor note.
    """

    def __init__(self, path: Path, identity: str, clips: ClipSet, classes: ClassList, batch_size: int) -> None:
        self.path = path
        self.file = path.with_name(f".{path.name}.partial")
        self.note = path.with_name(f".{path.name}.json")
        # Another batch size could change the last bit of a logit, so it starts a new pass.
        self.about = {"identity": identity, "batch_size": batch_size}
        self.shape = (len(clips), len(classes), CLIP_FRAMES)
        self.row_bytes = 2 * len(classes) * CLIP_FRAMES
        self.done = self._resumed()
        if self.done == 0:
            self._create(clips, classes)
        with h5py.File(self.file, "r") as file:
            self.offset = file["strong_logits"].id.get_offset()
        # Written through the file system, not a memory map: a full disk raises an error instead of SIGBUS.
        self.handle = self.file.open("r+b")

    def _resumed(self) -> int:
        """Clips that an interrupted pass has written; 0 if note or file are damaged or of another pass."""
        if not (self.note.is_file() and self.file.is_file()):
            return 0
        try:
            state = json.loads(self.note.read_text())
            done = state.pop("done")
            with h5py.File(self.file, "r") as file:
                data = file["strong_logits"]
                whole, offset = data.shape == self.shape, data.id.get_offset()
            size = self.file.stat().st_size
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return 0
        if state != self.about or type(done) is not int or not whole or offset is None:
            return 0
        return done if 0 <= done <= self.shape[0] and size >= offset + done * self.row_bytes else 0

    def _create(self, clips: ClipSet, classes: ClassList) -> None:
        self.note.unlink(missing_ok=True)
        with h5py.File(self.file, "w", libver="latest") as file:
            file["filenames"] = np.array(filenames(clips.ids), dtype="S")
            file["clip_ids"] = np.array([name.encode() for name in clips.ids], dtype="S")
            space = h5py.h5s.create_simple((len(clips), len(classes), CLIP_FRAMES))
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plan.set_obj_track_times(False)  # equal logits give equal bytes
            h5py.h5d.create(file.id, b"strong_logits", h5py.h5t.IEEE_F16LE, space, plan)
            file.attrs["classes"] = list(classes.names)
            file.attrs["class_ids"] = list(classes.mids)
            file.attrs["identity"] = self.about["identity"]

    def write(self, values: Float[np.ndarray, "n classes frames"]) -> None:
        """Append logits, flush them to disk, then count them."""
        self.handle.seek(self.offset + self.done * self.row_bytes)
        self.handle.write(values.astype("<f2").tobytes())
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.done += len(values)
        write_json(self.note, {**self.about, "done": self.done})

    def publish(self) -> None:
        """Rename the file to its final name."""
        self.handle.close()
        self.file.replace(self.path)
        sync_folder(self.path.parent)
        self.note.unlink(missing_ok=True)


def filenames(ids: Sequence[str]) -> list[bytes]:
    """File names as the published file spells them, ``Y<ytid>.mp3``; the clip ids if two names would be equal.

    Clips that are no segments of YouTube videos keep their ids.
    """
    names = [spellings(name)[1] if is_segment(name) else name for name in ids]
    return [name.encode() for name in (names if len(set(names)) == len(names) else ids)]
