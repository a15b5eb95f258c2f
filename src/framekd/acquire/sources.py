"""Audio that a lab already has: folders of files under several naming schemes, PaSST's HDF5 files of mp3 bytes, and
shards of this project."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

from framekd.audio import EXTENSIONS, DecodeError, decode
from framekd.config import UserError
from framekd.manifest import Clip
from framekd.store import FORMAT, Shard

CLIP_SECONDS = 12.0
"""A local file named by its video alone is the clip itself up to this length, and the whole video if it is longer."""


class Folder:
    """A folder of audio, looked through once. Names: ID, YID, ID_start, ID_start_end (seconds or milliseconds)."""

    name = "folder"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"audioset.folders: {path} is not a folder")
        self.real = self.path.resolve()
        self.files: dict[str, str] = {}
        for directory, folders, files in os.walk(self.path):
            folders.sort()
            for file in sorted(files):
                name = Path(file)
                if name.suffix.lower() in EXTENSIONS:
                    self.files.setdefault(name.stem, f"{directory}/{file}")

    def read(self, clip: Clip) -> np.ndarray | None:
        """The clip's samples (int16), or None if the folder does not have it."""
        for stem, cut in _stems(clip):
            found = self.files.get(stem)
            if found is not None:
                return self._decode(Path(found), clip, cut=cut)
        return None

    def _decode(self, path: Path, clip: Clip, *, cut: bool) -> np.ndarray:
        if not path.resolve().is_relative_to(self.real):
            raise DecodeError(f"{path.name} is a link that leads out of the folder")
        begin = decode(path, 0, CLIP_SECONDS + 0.5)
        if cut and len(begin) > CLIP_SECONDS * 16_000:
            return decode(path, clip.start_ms / 1000, (clip.end_ms - clip.start_ms) / 1000)
        return begin[: round(CLIP_SECONDS * 16_000)]


def _stems(clip: Clip) -> Iterator[tuple[str, bool]]:
    """File names that mean this clip, and whether the file may be the whole video; the most exact first."""
    starts, ends = _times(clip.start_ms), _times(clip.end_ms)
    for prefix in ("", "Y"):
        for start in starts:
            for end in ends:
                yield f"{prefix}{clip.ytid}_{start}_{end}", False
        for start in starts:
            yield f"{prefix}{clip.ytid}_{start}", False
    yield f"Y{clip.ytid}", True
    yield clip.ytid, True


def _times(ms: int) -> list[str]:
    out = [str(ms), f"{ms / 1000:.3f}", f"{ms / 1000:.1f}"]
    return [*out, str(ms // 1000)] if ms % 1000 == 0 else out


class Mp3File:
    """PaSST's layout: ``audio_name`` (Y<id>.mp3 as bytes) and ``mp3`` (the clip's mp3 file as uint8), clip by clip.

    As in the authors' loader, the first channel is taken.
    """

    name = "hdf5"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with h5py.File(self.path, "r") as file:
                names = file["audio_name"][:]
                if file["mp3"].shape[0] != len(names):
                    raise KeyError("mp3 and audio_name differ in length")
        except FileNotFoundError:
            raise UserError(f"audioset.hdf5: {path}: no such file") from None
        except (OSError, KeyError) as error:
            raise UserError(f"audioset.hdf5: {path}: expected datasets audio_name and mp3 ({error})") from None
        self.rows: dict[str, int] = {}
        for row, name in enumerate(names):
            text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
            self.rows.setdefault(Path(text).stem, row)

    def read(self, clip: Clip) -> np.ndarray | None:
        """The clip's samples (int16), or None if the file does not have it."""
        row = next((self.rows[stem] for stem, _ in _stems(clip) if stem in self.rows), None)
        if row is None:
            return None
        with h5py.File(self.path, "r") as file:
            data = np.asarray(file["mp3"][row], np.uint8).tobytes()
        return decode(data, channel="first")[: round(CLIP_SECONDS * 16_000)]


class Stored:
    """Shards of this project, made elsewhere."""

    name = "store"

    def __init__(self, path: str | Path) -> None:
        self.shard = Shard(path)
        self.rows = {name: row for row, name in enumerate(self.shard.ids)}

    def read(self, clip: Clip) -> np.ndarray | None:
        """The clip's samples (int16), or None if the shard does not have it."""
        row = self.rows.get(clip.clip_id)
        return None if row is None else self.shard[row]


Source = Folder | Mp3File | Stored


def _hdf5(path: str) -> Source:
    try:
        with h5py.File(path, "r") as file:
            ours = file.attrs.get("format") == FORMAT
    except OSError:
        ours = False  # told by Mp3File
    return Stored(path) if ours else Mp3File(path)


def open_sources(folders: Iterable[str], hdf5: Iterable[str]) -> list[Source]:
    """The local sources in the order in which they are asked."""
    return [*map(Folder, folders), *map(_hdf5, hdf5)]
