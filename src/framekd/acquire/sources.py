"""Audio in other layouts: reading local copies, and exporting the store for other projects.

Read are folders of files under several naming schemes, PaSST's HDF5 files of mp3 bytes, and shards of this project.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import soundfile

from framekd.audio import EXTENSIONS, DecodeError, decode
from framekd.config import UserError
from framekd.files import replacing
from framekd.labels import parse_clip_id
from framekd.manifest import Clip
from framekd.store import FORMAT, Shard, Store, digest
from framekd.units import SAMPLE_RATE

LONGEST_CLIP = 12.0
"""A file that is named by its video alone holds the clip if it is at most this long (seconds), else the whole video."""


class Folder:
    """A folder of audio files, listed once. Names: ID, YID, ID_start, ID_start_end (seconds or milliseconds)."""

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
        if not path.is_file():
            raise DecodeError(f"{path.name} is a dead link, or no file")
        begin = decode(path, 0, LONGEST_CLIP + 0.5)
        if cut and len(begin) > LONGEST_CLIP * SAMPLE_RATE:
            return decode(path, clip.start_ms / 1000, (clip.end_ms - clip.start_ms) / 1000)
        return begin[: round(LONGEST_CLIP * SAMPLE_RATE)]


def _stems(clip: Clip) -> Iterator[tuple[str, bool]]:
    """Names that a file of this clip may have, most specific first, and whether it may hold the whole video."""
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
    """PaSST's layout, one row per clip: ``audio_name`` (Y<id>.mp3 as bytes) and ``mp3`` (an mp3 file as uint8).

    The first channel is used, as in the authors' loader.
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
        return decode(data, channel="first")[: round(LONGEST_CLIP * SAMPLE_RATE)]


class Stored:
    """A shard of this project, made elsewhere."""

    name = "store"

    def __init__(self, path: str | Path) -> None:
        self.shard = Shard(path)
        self.rows = {name: row for row, name in enumerate(self.shard.ids)}

    def read(self, clip: Clip) -> np.ndarray | None:
        """The clip's samples (int16), or None if the shard does not have it."""
        row = self.rows.get(clip.clip_id)
        if row is None:
            return None
        try:
            samples = self.shard[row]
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"{self.shard.path.name}: clip {clip.clip_id} cannot be decoded ({error})") from None
        if digest(samples) != self.shard.sha256[row].tobytes().hex():
            raise DecodeError(f"{self.shard.path.name}: clip {clip.clip_id} is not what was stored (SHA-256 differs)")
        return samples


Source = Folder | Mp3File | Stored


def _hdf5(path: str) -> Source:
    try:
        with h5py.File(path, "r") as file:
            ours = file.attrs.get("format") == FORMAT
    except OSError:
        ours = False  # Mp3File reports the error
    return Stored(path) if ours else Mp3File(path)


def open_sources(folders: Iterable[str], hdf5: Iterable[str]) -> list[Source]:
    """The local sources, in the order in which they are searched. A folder in `hdf5` is all its .h5 files, by name."""
    files = [file for path in hdf5 for file in _files(Path(path))]
    return [*map(Folder, folders), *(_hdf5(str(file)) for file in files)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob("*.h5"))):
        raise UserError(f"audioset.hdf5: {path} has no file *.h5; name the folder that holds them, or a file")
    return found


def export_folder(
    shards: Iterable[str | Path], directory: str | Path, *, suffix: str = ".flac", name: str = "Y{clip_id}"
) -> int:
    """Write every clip to a file of its own.

    Files that exist are left as they are; each is written whole or not at all.

    Args:
        shards: shards of the store.
        suffix: .wav, .flac, .ogg or .mp3.
        name: template of the file names; may contain {clip_id}, {ytid}, {start_ms} and {start} (seconds).
    Returns:
        Number of clips.
    Raises:
        UserError: two clips would have the same name.
    """
    store, directory = Store(shards), Path(directory)
    written: dict[str, str] = {}
    for i, clip in enumerate(store.ids):
        ytid, start = parse_clip_id(clip)
        stem = name.format(clip_id=clip, ytid=ytid, start_ms=start, start=f"{start / 1000:g}")
        if stem in written:
            raise UserError(f"{clip} and {written[stem]} would both be {stem}{suffix}; use {{clip_id}} in the name")
        written[stem] = clip
        path = directory / f"{stem}{suffix}"
        if not path.exists():
            with replacing(path) as aside:
                soundfile.write(aside, store[i], SAMPLE_RATE)
    return len(written)


def export_hdf5(shards: Iterable[str | Path], path: str | Path) -> int:
    """Write PaSST's layout: ``audio_name`` (Y<id>.mp3) and ``mp3`` (an mp3 file per clip).

    Returns:
        Number of clips.
    """
    store = Store(shards)
    names = [f"Y{parse_clip_id(clip)[0]}.mp3" for clip in store.ids]
    with replacing(path) as aside, h5py.File(aside, "w") as file:
        file.create_dataset("audio_name", data=np.array([name.encode() for name in names], dtype="S20"))
        rows = file.create_dataset("mp3", (len(names),), h5py.vlen_dtype(np.uint8))
        for i in range(len(names)):
            buffer = io.BytesIO()
            soundfile.write(buffer, store[i], SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
            rows[i] = np.frombuffer(buffer.getvalue(), np.uint8)
    return len(names)
