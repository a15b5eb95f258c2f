"""An ensemble file as soft labels: rows by clip, in the order of one's own classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from framekd.config import UserError
from framekd.labels import ClassList, parse_clip_id


class SoftLabels:
    """An ensemble file as soft labels: ``rows(ids)`` gives probabilities, float32 [clips, classes, frames].

    Clips are found by clip id, ``Y<ytid>.mp3`` or ``<ytid>``; the exact name is preferred, but names that lost trailing
    letters in the authors' ``rstrip(".mp3")`` are found too. Classes are matched by id or name, whatever their order.
    A file without a class list must have as many classes as asked for. `mask` tells which classes the file has, and
    `identity` tells ensembles apart. Where it lacks a class, and with ``missing_clips="labels"`` for clips that it
    lacks, rows are NaN, which the loss takes for "no soft label". UserError for any other mismatch.
    """

    def __init__(self, path: Path | str, classes: ClassList, *, missing_clips: str = "refuse") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"{self.path}: no such ensemble file; make it first (rule ensemble), or fetch the published one"
            )
        if missing_clips not in ("refuse", "labels"):
            raise ValueError(f'missing_clips is "refuse" or "labels", not {missing_clips!r}')
        self.missing_clips = missing_clips
        if not h5py.is_hdf5(self.path):
            raise UserError(f"{self.path} is no HDF5 file; copy or fetch it again, and not the page that leads to it")
        with h5py.File(self.path, "r") as file:
            lacking = [name for name in ("filenames", "strong_logits") if name not in file]
            if lacking:
                raise UserError(
                    f"{self.path}: no dataset {lacking[0]!r}; an ensemble file has filenames and strong_logits"
                )
            data = file["strong_logits"]
            self.shape, dtype, offset = data.shape, data.dtype, data.id.get_offset()
            self._names = [_text(name) for name in file["filenames"][:]]
            self._ids = [_text(name) for name in file["clip_ids"][:]] if "clip_ids" in file else []
            names = [_text(name) for name in file.attrs.get("classes", [])]
            mids = [_text(name) for name in file.attrs.get("class_ids", [])]
            about = self.path.stat()
            self.identity = _text(file.attrs.get("identity", f"{about.st_size} bytes, {about.st_mtime_ns} ns"))
        if len(self.shape) != 3 or self.shape[0] != len(self._names):
            raise UserError(
                f"{self.path}: strong_logits has shape {list(self.shape)} for {len(self._names)} file names"
            )
        self._columns, self.mask = match_classes(self.path, self.shape[1], classes, names, mids)
        self._offset, self._dtype = offset, dtype
        self._memory: np.memmap | None = None
        self._index = self._spellings()
        if offset is None:  # chunked or compressed: no block to map
            self._handle = h5py.File(self.path, "r")

    def _spellings(self) -> dict[str, int]:
        """Row by every spelling of a clip; exact names first, so that none is hidden by another's stripped one."""
        index: dict[str, int] = {}
        for i, name in enumerate(self._ids):
            index.setdefault(name, i)
        # Stripped, two names can become one; whose logits these are cannot be told, so neither clip has any.
        count = Counter(self._names)
        for spelled in (lambda name: name, lambda name: name.removesuffix(".mp3")):
            for i, name in enumerate(self._names):
                if count[name] == 1:
                    index.setdefault(spelled(name), i)
        return index

    def row(self, clip: str) -> int | None:
        """Row of a clip in the file, or None."""
        for name in _candidates(clip):
            if (found := self._index.get(name)) is not None:
                return found
        return None

    def rows(self, ids: Sequence[str]) -> Float[Tensor, "clips classes frames"]:
        """Probabilities of the clips; NaN where the ensemble has none."""
        found = [self.row(name) for name in ids]
        if None in found and self.missing_clips == "refuse":
            clip = ids[found.index(None)]
            raise UserError(
                f"{self.path} has no clip {clip!r} ({len(self._names)} clips, such as {self._names[0]!r}); "
                "make the ensemble over this training set"
            )
        picked = torch.from_numpy(self._read([0 if i is None else i for i in found]))
        if self._columns is not None:
            picked = picked[:, self._columns.clip(0)]
        soft = picked.float().sigmoid_()
        if not bool(self.mask.all()):
            soft[:, ~self.mask] = torch.nan
        for i, row in enumerate(found):
            if row is None:
                soft[i] = torch.nan
        return soft

    def _read(self, rows: list[int]) -> np.ndarray:
        if self._offset is None:
            return np.stack([self._handle["strong_logits"][i] for i in rows])
        if self._memory is None:
            self._memory = np.memmap(self.path, self._dtype, "r", self._offset, self.shape)
        return self._memory[rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None}


def match_classes(
    path: Path, count: int, classes: ClassList, names: list[str], mids: list[str]
) -> tuple[np.ndarray | None, Bool[Tensor, " classes"]]:
    """Find the classes that are trained among those of a file of logits.

    Args:
        path: the file, for messages.
        count: classes of its logits.
        classes: classes that are trained.
        names, mids: class names and ids that the file states; both may be empty.
    Returns:
        For each class its place in the file, -1 where there is none (None: the same places); and which are there.
    Raises:
        UserError: the file has other classes.
    """
    if not names and not mids:
        if count != len(classes):
            raise UserError(
                f"{path} has no class list and {count} classes, but {len(classes)} are trained; "
                "take an ensemble of the same classes"
            )
        return None, torch.ones(count, dtype=torch.bool)
    theirs, ours = (mids, classes.mids) if mids else (names, classes.names)
    if len(theirs) != count or len(set(theirs)) != count:
        raise UserError(f"{path}: its class list has {len(set(theirs))} classes for {count} rows of logits")
    row = {name: i for i, name in enumerate(theirs)}
    columns = np.array([row.get(name, -1) for name in ours], dtype=np.int64)
    if (columns < 0).all():
        raise UserError(f"{path} has none of the classes that are trained; it begins with {', '.join(theirs[:3])}")
    same = len(columns) == count and (columns == np.arange(count)).all()
    return (None if same else columns), torch.from_numpy(columns >= 0)


def _candidates(clip: str) -> list[str]:
    """Spellings of a clip, the likeliest first: as given, by its YouTube id, and stripped as by ``rstrip(".mp3")``."""
    names = [clip]
    try:
        ytid = parse_clip_id(clip)[0]
    except ValueError:
        ytid = clip.removesuffix(".mp3")
        ytid = ytid[1:] if len(ytid) == 12 and ytid.startswith("Y") else ytid
    names += [f"Y{ytid}.mp3", f"Y{ytid}", ytid]
    return [*names, f"Y{ytid}.mp3".rstrip(".mp3"), ytid.rstrip(".mp3")]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
