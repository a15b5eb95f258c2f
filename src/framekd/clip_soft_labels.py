"""Soft labels of whole clips: logits in .npy with a pickled index, in .npz or in HDF5, read row by row (Step 2)."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd.config import UserError
from framekd.data.gather import Empty
from framekd.files import SteadyFile
from framekd.hdf5 import refuse_endless
from framekd.labels import ClassList
from framekd.soft_labels import DTYPES, match_classes, probabilities, spellings, text

BLOCK = 1 << 12
"""Rows that are checked at once."""


class ClipSoftLabels:
    """Soft labels of clips: ``rows(ids)`` gives probabilities, float32 [clips, classes], NaN for clips without any.

    The logits stay on disk; only rows that are asked for are read. `known` is how many of the clips have soft labels,
    and `identity` names the files.

    Args:
        logits: .npy [clips, classes], or .npz or HDF5 with `names` [clips] and `logits` [clips, classes] (and `classes`
            or `class_ids`: arrays in .npz, attributes in HDF5).
        index: of .npy, a pickled dict of YouTube id to row.
        clips: ids of the training clips; names in the file are ``<ytid>_<ms>``, ``Y<ytid>.mp3`` or ``<ytid>``.
        classes: the classes that are trained. A file without a class list must have as many, in the same order.
    Raises:
        UserError: a file that is absent or of another kind, other classes, NaN, or none of the clips.
    """

    def __init__(
        self, logits: str | Path, clips: Sequence[str], classes: ClassList, *, index: str | Path | None = None
    ) -> None:
        self.path = Path(logits)
        for path in (self.path, *([Path(index)] if index else [])):
            if not path.is_file():
                raise UserError(f"{path}: no such file of soft labels; correct the path in step2.soft_labels")
        self._steady = SteadyFile(self.path, "start the run again with one whole file of soft labels")
        try:
            self._open, names, class_names, mids = _reader(self.path, Path(index) if index else None)
            data = self._open()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file raises whatever it likes
            raise UserError(f"{self.path} is damaged ({error}); copy or fetch it again") from None
        if data.ndim != 2 or data.dtype.name not in DTYPES:
            raise UserError(
                f"{self.path}: expected floating-point logits [clips, classes], not {data.dtype} {data.shape}"
            )
        if not isinstance(names, dict):
            if len(names) != len(data):
                raise UserError(f"{self.path}: {len(names)} names for {len(data)} rows of logits")
            names = {name: i for i, name in enumerate(names)}
        elif wrong := next((name for name, row in names.items() if not 0 <= row < len(data)), None):
            raise UserError(f"{index}: {wrong!r} is in row {names[wrong]}, but {self.path} has {len(data)} rows")
        self._columns, self.mask = match_classes(self.path, data.shape[1], classes, class_names, mids)
        self._rows = _find(clips, names)
        self.known = len(self._rows)
        if not self.known:
            raise UserError(
                f"{self.path} has soft labels for none of the {len(clips)} training clips, such as {clips[0]!r}; "
                "give a file that was made from AudioSet Weak's training clips"
            )
        self._refuse_nan()
        about = self.path.stat()
        self.identity = f"{about.st_size} bytes, {about.st_mtime_ns} ns, {self.known} clips"

    def _refuse_nan(self) -> None:
        ids = sorted(self._rows, key=self._rows.__getitem__)
        for i in range(0, len(ids), BLOCK):
            part = ids[i : i + BLOCK]
            bad = np.isnan(_take(self._open(), np.array([self._rows[name] for name in part]))).any(axis=1)
            if bad.any():
                raise UserError(
                    f"{self.path}: logits of {int(bad.sum())} clips are NaN, such as {part[int(bad.argmax())]!r}; "
                    "take another file, or leave the clips out of its index"
                )

    def rows(self, ids: Sequence[str]) -> Float[Tensor, "clips classes"]:
        """Probabilities of the clips; NaN where the file has none."""
        return self.probabilities(self.stored(ids))

    def stored(self, ids: Sequence[str], empty: Empty = torch.empty) -> Float[Tensor, "clips file_classes"]:
        """Logits of the clips as the file has them; NaN for clips that it lacks. `empty` makes the tensor.

        Raises:
            UserError: the file has changed since it was opened.
        """
        found = [self._rows.get(name) for name in ids]
        # The file is opened for each batch: pages of a map that is closed leave the memory of the process.
        self._steady.check()
        picked = _take(self._open(), np.array([row or 0 for row in found], np.int64))
        out = empty(picked.shape, dtype=DTYPES[picked.dtype.name])
        out.numpy()[:] = picked
        out[[i for i, row in enumerate(found) if row is None]] = torch.nan
        return out

    def probabilities(self, stored: Float[Tensor, "clips file_classes"]) -> Float[Tensor, "clips classes"]:
        """Probabilities, float32, of logits from `stored`, on their device; NaN for classes that the file lacks."""
        return probabilities(stored, self._columns, self.mask)


def _take(data: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an array on disk, read in their order there."""
    places, back = np.unique(rows, return_inverse=True)
    return np.asarray(data[places])[back]


def _find(clips: Sequence[str], names: dict[str, int]) -> dict[str, int]:
    """Row by clip. A name that lost letters in ``rstrip(".mp3")`` is taken only where it is one clip's."""
    found, stripped = {}, {}
    for clip in clips:
        *exact, first, second = spellings(clip)
        row = next((names[name] for name in exact if name in names), None)
        if row is not None:
            found[clip] = row
        elif (row := names.get(first, names.get(second))) is not None:
            stripped[clip] = row
    count = Counter([*found.values(), *stripped.values()])
    return found | {clip: row for clip, row in stripped.items() if count[row] == 1}


# Files ------------------------------------------------------------------------------------------------------------

Names = list[str] | dict[str, int]


def check_kind(path: str | Path, source: str) -> None:
    """Check that `path`, fetched from `source`, is what its name says: .npy, .npz, .pkl, or HDF5 for any other name.

    Raises:
        UserError: it is not.
    """
    path, right = Path(path), "write the address of the file itself, not of a page"
    kind = path.suffix.lower()
    if kind == ".npy":
        _npy(path)
    elif kind == ".pkl":
        read_index(path)
    elif kind == ".npz" and not zipfile.is_zipfile(path):
        raise UserError(f"{source} is no .npz file; {right}")
    elif kind != ".npz" and not h5py.is_hdf5(path):
        raise UserError(f"{source} is no HDF5 file; {right}")


def _reader(path: Path, index: Path | None) -> tuple[Callable[[], Any], Names, list[str], list[str]]:
    """What opens the logits, the names of their rows, and the class names and ids that the file states."""
    kind = path.suffix.lower()
    if kind == ".npy":
        if index is None:
            raise UserError(f"{path} has no names; give its index in step2.soft_labels.index")
        return lambda: _npy(path), read_index(index), [], []
    if kind == ".npz":
        lists = _npz_lists(path)
        return lambda: _npz_logits(path), lists["names"], lists["classes"], lists["class_ids"]
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file; give .npy with an index, .npz or HDF5")
    refuse_endless(path, ["names"])
    with h5py.File(path, "r") as file:
        for name in ("names", "logits"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise UserError(f"{path}: no dataset {name!r}; soft labels of clips have names and logits")
        names = [text(name) for name in file["names"][:]]
        classes, mids = ([text(name) for name in file.attrs.get(key, [])] for key in ("classes", "class_ids"))
    return lambda: h5py.File(path, "r")["logits"], names, classes, mids


def _npy(path: Path) -> np.ndarray:
    """A memory map of an .npy file."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # noqa: BLE001 - a damaged header raises whatever it likes, such as SyntaxError
        raise UserError(f"{path} is no whole .npy file of numbers ({error}); copy or fetch it again") from None


def _npz_lists(path: Path) -> dict[str, list[str]]:
    """The names and class lists of an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "names" not in file or "logits" not in file:
                raise UserError(f"{path}: soft labels of clips have the arrays names and logits")
            return {
                key: [text(n) for n in file[key]] if key in file else [] for key in ("names", "classes", "class_ids")
            }
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged archive raises whatever it likes, such as zlib.error
        raise UserError(f"{path} is no .npz file of plain arrays ({error}); copy or fetch it again") from None


def _npz_logits(path: Path) -> np.ndarray:
    """A memory map of the array `logits` of an .npz file, which is not compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("logits.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} is compressed, so that rows cannot be read alone; write it with numpy.savez")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of name and extra field, which the array follows
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return np.memmap(path, dtype, "r", file.tell(), shape, order="F" if fortran else "C")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values alone: code in a pickle is reached by its name, and no name is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise _AsksForCodeError(f"{module}.{name}")


class _AsksForCodeError(Exception):
    pass


def read_index(path: str | Path) -> dict[str, int]:
    """A pickled dict of strings to integers, read without running any code in it.

    Raises:
        UserError: it asks for code (numpy's integers do, too), or is anything else.
    """
    wanted = "expected a pickled dict of YouTube ids to plain integers"
    try:
        with Path(path).open("rb") as file:
            found = _PlainUnpickler(file).load()
    except _AsksForCodeError as error:
        raise UserError(f"{path} asks for code ({error}), which is not run: {wanted}") from None
    except Exception as error:  # noqa: BLE001 - a broken pickle raises whatever it likes
        raise UserError(f"{path} cannot be read ({type(error).__name__}): {wanted}") from None
    if type(found) is not dict or not all(type(k) is str and type(v) is int for k, v in found.items()):
        raise UserError(f"{path} holds something else: {wanted}")
    return found


def write_clip_logits(path: str | Path, ids: Sequence[str], logits: np.ndarray, classes: ClassList) -> None:
    """Write logits [clips, classes] as an HDF5 file for :class:`ClipSoftLabels`."""
    with h5py.File(path, "w") as file:
        file["names"] = np.array([name.encode() for name in ids])
        file["logits"] = logits.astype(np.float32)
        file.attrs["classes"], file.attrs["class_ids"] = list(classes.names), list(classes.mids)
