"""The ensemble's logits, read as soft labels of clips (Sec. 3.2). Their file: see :mod:`framekd.ensemble`."""

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
from framekd.data.gather import Empty
from framekd.files import SteadyFile
from framekd.hdf5 import refuse_endless
from framekd.labels import ClassList, known_strong, parse_clip_id

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class SoftLabels:
    """An ensemble file as soft labels: ``rows(ids)`` gives probabilities, float32 [clips, classes, frames].

    A clip is found by its clip id, by ``Y<ytid>.mp3`` or by ``<ytid>``, and also if its name lost trailing letters to
    ``rstrip(".mp3")`` in the authors' code; an exact name is preferred. Classes are matched by id, else by name, in
    any order. A file without a class list has as many classes as `classes`, or is the published one of 447 classes.

    Args:
        path: the HDF5 file.
        classes: classes of the rows to return.
        missing_clips: "refuse", or "labels" for rows of NaN in place of clips that the file lacks. The loss takes NaN
            as "no soft label". Classes that the file lacks are always NaN.
    Attributes:
        mask: [classes] bool, the classes that the file has.
        identity: differs between ensembles.
    Raises:
        UserError: no such file, another layout, or other classes.
    """

    def __init__(self, path: Path | str, classes: ClassList, *, missing_clips: str = "refuse") -> None:
        self.path = Path(path)
        if missing_clips not in ("refuse", "labels"):
            raise ValueError(f'missing_clips is "refuse" or "labels", not {missing_clips!r}')
        self.missing_clips = missing_clips
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such ensemble file; make it (rule ensemble) or fetch the published one")
        if not h5py.is_hdf5(self.path):
            raise UserError(f"{self.path} is not an HDF5 file; fetch the file, not the web page that links to it")
        self._file = SteadyFile(self.path, "start the run again with one whole file of soft labels")
        refuse_endless(self.path, ["filenames", "clip_ids"])
        try:
            with h5py.File(self.path, "r") as file:
                for name in ("filenames", "strong_logits"):
                    if name not in file:
                        raise UserError(
                            f"{self.path}: no dataset {name!r}; an ensemble file has filenames and strong_logits"
                        )
                for name in ("filenames", "clip_ids"):
                    if name in file and file[name].nbytes > 100 * self.path.stat().st_size:  # else it reads for minutes
                        raise UserError(f"{self.path} is damaged ({name} is longer than the file); make it again")
                data = file["strong_logits"]
                self.shape, self._dtype, self._offset = data.shape, data.dtype, data.id.get_offset()
                self._names = [text(name) for name in file["filenames"][:]]
                self._ids = [text(name) for name in file["clip_ids"][:]] if "clip_ids" in file else []
                names = [text(name) for name in file.attrs.get("classes", [])]
                mids = [text(name) for name in file.attrs.get("class_ids", [])]
                about = self.path.stat()
                self.identity = text(file.attrs.get("identity", f"{about.st_size} bytes, {about.st_mtime_ns} ns"))
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file raises whatever it likes
            raise UserError(f"{self.path} is damaged ({error}); make, copy or fetch it again") from None
        if self._dtype.kind != "f":
            raise UserError(f"{self.path}: strong_logits are {self._dtype}, not floating-point numbers")
        if len(self.shape) != 3 or self.shape[0] != len(self._names):
            shape = list(self.shape)
            raise UserError(f"{self.path}: strong_logits has shape {shape} for {len(self._names)} filenames")
        self._columns, self.mask = match_classes(self.path, self.shape[1], classes, names, mids)
        self._index = self._spellings()
        self._found: dict[str, int | None] = {}
        if self._dtype.name not in DTYPES or not self._dtype.isnative:
            raise UserError(f"{self.path}: strong_logits is {self._dtype.str}, not little-endian floating point")
        if self._offset is None:  # chunked or compressed: its rows are not blocks of the file
            self._handle = h5py.File(self.path, "r")

    def _spellings(self) -> dict[str, int]:
        """Row by every spelling of a clip's name; exact names come before stripped ones."""
        index: dict[str, int] = {}
        for i, name in enumerate(self._ids):
            index.setdefault(name, i)
        # Two names can be equal once stripped. Such a row cannot be assigned to a clip, so it is left out.
        count = Counter(self._names)
        for spelled in (lambda name: name, lambda name: name.removesuffix(".mp3")):
            for i, name in enumerate(self._names):
                if count[name] == 1:
                    index.setdefault(spelled(name), i)
        return index

    def row(self, clip: str) -> int | None:
        """Row of a clip in the file, or None."""
        if clip not in self._found:
            rows = (self._index.get(name) for name in spellings(clip))
            self._found[clip] = next((row for row in rows if row is not None), None)
        return self._found[clip]

    def rows(self, ids: Sequence[str]) -> Float[Tensor, "clips classes frames"]:
        """Probabilities of the clips; NaN where the ensemble has none.

        Raises:
            UserError: the file lacks a clip, unless `missing_clips` is "labels"; or it has changed since it was opened.
        """
        return self.probabilities(self.stored(ids))

    def stored(self, ids: Sequence[str], empty: Empty = torch.empty) -> Float[Tensor, "clips file_classes frames"]:
        """Logits of the clips as the file has them; NaN for clips that it lacks. `empty` makes the tensor.

        Raises:
            UserError: as for `rows`.
        """
        found = [self.row(name) for name in ids]
        if None in found and self.missing_clips == "refuse":
            clip = ids[found.index(None)]
            raise UserError(
                f"{self.path} has no clip {clip!r} ({len(self._names)} clips, such as {self._names[0]!r}); "
                "make the ensemble over this training set"
            )
        out = empty((len(ids), *self.shape[1:]), dtype=DTYPES[self._dtype.name])
        size = self._dtype.itemsize * self.shape[1] * self.shape[2]
        places = []
        for place, row in zip(out.numpy(), found):
            if row is None:
                place[:] = np.nan
            elif self._offset is None:
                place[:] = self._handle["strong_logits"][row]
            else:
                places.append((self._offset + row * size, place))
        self._file.read(places)
        return out

    def probabilities(
        self, stored: Float[Tensor, "clips file_classes frames"]
    ) -> Float[Tensor, "clips classes frames"]:
        """Probabilities, float32, of logits from `stored`, on their device; NaN for classes that the file lacks."""
        return probabilities(stored, self._columns, self.mask)


def probabilities(stored: Tensor, columns: np.ndarray | None, mask: Bool[Tensor, " classes"]) -> Tensor:
    """Probabilities of the classes at `columns` of stored logits [clips, file classes, …]; NaN where `mask` is false.

    It never waits for the device.
    """
    if columns is not None:
        index = torch.from_numpy(columns.clip(0)).to(stored.device, non_blocking=True)
        stored = stored.index_select(1, index)
    soft = stored.float().sigmoid()
    if columns is not None and (columns < 0).any():
        absent = ~mask.view(-1, *[1] * (stored.ndim - 2)).to(stored.device, non_blocking=True)
        soft.masked_fill_(absent, torch.nan)
    return soft


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
        The place in the file of each class, -1 where there is none (None: the same places); and which classes the file
        has.
    Raises:
        UserError: the file has other classes.
    """
    if not names and not mids:
        published = known_strong()[0].mids
        if count == len(published) < len(classes):  # own classes are trained beside AudioSet's
            return match_classes(path, count, classes, [], list(published))
        if count != len(classes):
            trained = f"but {len(classes)} are trained; take an ensemble of the same classes"
            raise UserError(f"{path} has no class list and {count} classes, {trained}")
        return None, torch.ones(count, dtype=torch.bool)
    theirs, ours = (mids, classes.mids) if mids else (names, classes.names)
    if len(theirs) != count or len(set(theirs)) != count:
        raise UserError(f"{path}: its class list has {len(set(theirs))} classes for {count} rows of logits")
    row = {name: i for i, name in enumerate(theirs)}
    columns = np.array([row.get(name, -1) for name in ours], dtype=np.int64)
    if (columns < 0).all():
        raise UserError(f"{path} has none of the trained classes; its first are {', '.join(theirs[:3])}")
    same = len(columns) == count and (columns == np.arange(count)).all()
    return (None if same else columns), torch.from_numpy(columns >= 0)


def is_segment(clip: str) -> bool:
    """Whether a clip id is that of a segment of a YouTube video."""
    try:
        return bool(parse_clip_id(clip))
    except ValueError:
        return False


def spellings(clip: str) -> list[str]:
    """Spellings of a clip, most likely first: as given, by its YouTube id, and stripped as by ``rstrip(".mp3")``."""
    names = [clip]
    try:
        ytid = parse_clip_id(clip)[0]
    except ValueError:
        ytid = clip.removesuffix(".mp3")
        ytid = ytid[1:] if len(ytid) == 12 and ytid.startswith("Y") else ytid
    names += [f"Y{ytid}.mp3", f"Y{ytid}", ytid]
    return [*names, f"Y{ytid}.mp3".rstrip(".mp3"), ytid.rstrip(".mp3")]


def text(value: Any) -> str:
    """A string of an HDF5 or NumPy file."""
    return value.decode() if isinstance(value, bytes) else str(value)
