"""The store: HDF5 shards of 16 kHz mono 16-bit audio, as plain samples (memory-mapped) or FLAC.

A shard holds, sorted by clip id: ``ids``, ``start_ms``, ``samples``, ``sha256`` (of the samples, little endian),
``source``, ``bounds`` [clips + 1] into ``audio``, and ``audio`` itself: int16 samples of all clips end to end (encoding
"pcm"), or the bytes of one FLAC file per clip (encoding "flac"). A shard is written whole and never appended to. The
same clips give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from framekd.config import UserError
from framekd.files import SteadyFile, replacing
from framekd.units import SAMPLE_RATE

FORMAT = "framekd-audio-1"
_BLOCK = 1 << 22  # samples or bytes moved at once


class StoreError(UserError):
    """A shard that is missing, damaged or not as expected."""


@dataclass(frozen=True)
class StoredClip:
    """A clip to be stored: its samples (int16 [samples]) and their source."""

    clip_id: str
    start_ms: int
    samples: np.ndarray
    source: str = ""


def digest(samples: np.ndarray) -> str:
    """SHA-256 of int16 samples as little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(samples, "<i2").tobytes()).hexdigest()


def _encode_flac(samples: np.ndarray) -> bytes:
    import soundfile

    if len(samples) == 0:
        return b""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _decode_flac(data: bytes) -> np.ndarray:
    import soundfile

    if not data:
        return np.zeros(0, np.int16)
    return soundfile.read(io.BytesIO(data), dtype="int16")[0]


def write_shard(path: str | Path, clips: Iterable[StoredClip], *, encoding: str = "pcm") -> int:
    """Write a shard; one clip at a time is in memory.

    Args:
        clips: sorted by id.
        encoding: "pcm" or "flac".
    Returns:
        Number of clips.
    Raises:
        StoreError: ids are not strictly ascending, or samples are not int16 [samples].
        UserError: the disk is full.
    """
    if encoding not in ("pcm", "flac"):
        raise StoreError(f"encoding must be pcm or flac, not {encoding!r}")
    path = Path(path)
    index: list[tuple[str, int, int, bytes, str]] = []
    bounds = [0]
    with replacing(path) as aside, tempfile.TemporaryFile(dir=path.parent) as spool:
        for clip in clips:
            samples = np.ascontiguousarray(clip.samples, "<i2")
            if clip.samples.dtype != np.int16 or samples.ndim != 1:
                raise StoreError(f"clip {clip.clip_id}: expected int16 [samples], not {clip.samples.dtype}")
            if index and clip.clip_id <= index[-1][0]:
                raise StoreError(f"clip {clip.clip_id} must come after {index[-1][0]}")
            data = samples.tobytes() if encoding == "pcm" else _encode_flac(samples)
            spool.write(data)
            sha = hashlib.sha256(samples.tobytes() if encoding == "flac" else data).digest()
            index.append((clip.clip_id, clip.start_ms, len(samples), sha, clip.source))
            bounds.append(bounds[-1] + (len(samples) if encoding == "pcm" else len(data)))
        spool.seek(0)
        _write_hdf5(aside, spool, index, bounds, encoding)
    return len(index)


def _write_hdf5(aside: Path, spool: IO[bytes], index: list, bounds: list[int], encoding: str) -> None:
    """Write index and audio. Datasets are contiguous and have no time stamps, so that equal content is equal bytes."""
    dtype = np.dtype("<i2" if encoding == "pcm" else "u1")
    with h5py.File(aside, "w", libver=("v110", "v110")) as file:
        file.attrs["format"] = FORMAT
        file.attrs["encoding"] = encoding
        file.attrs["sample_rate"] = SAMPLE_RATE

        def dataset(name: str, values: np.ndarray) -> None:
            file.create_dataset(name, data=values, track_times=False)

        def texts(values: Sequence[str]) -> np.ndarray:
            encoded = [value.encode() for value in values]
            return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")

        dataset("ids", texts([row[0] for row in index]))
        dataset("start_ms", np.array([row[1] for row in index], "<i8"))
        dataset("samples", np.array([row[2] for row in index], "<i8"))
        dataset("sha256", np.frombuffer(b"".join(row[3] for row in index), "u1").reshape(len(index), 32))
        dataset("source", texts([row[4] for row in index]))
        dataset("bounds", np.array(bounds, "<i8"))
        audio = file.create_dataset("audio", shape=(bounds[-1],), dtype=dtype, track_times=False)
        at = 0
        while at < bounds[-1]:
            block = np.frombuffer(spool.read(dtype.itemsize * min(_BLOCK, bounds[-1] - at)), dtype)
            audio[at : at + len(block)] = block
            at += len(block)


class Shard:
    """One shard; ``shard[i]`` is int16 [samples].

    PCM is memory-mapped in each process that reads it: nothing is read before it is used, and processes share pages.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = SteadyFile(self.path, "start the run again when the shard is whole")
            with h5py.File(self.path, "r") as file:
                self._read_index(file)
        except FileNotFoundError:
            raise StoreError(f"{self.path}: no such shard") from None
        except (OSError, KeyError, AttributeError, TypeError, IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.path}: not a complete audio shard ({error}); delete it and acquire it again"
            ) from None
        self._audio: np.ndarray | None = None

    def _read_index(self, file: h5py.File) -> None:
        if file.attrs.get("format") != FORMAT:
            raise StoreError(f"{self.path}: not an audio shard of this project ({FORMAT})")
        self.encoding = str(file.attrs["encoding"])
        self.ids = [name.decode() for name in file["ids"][:]]
        self.start_ms, self.samples = file["start_ms"][:], file["samples"][:]
        self.sha256, self.bounds = file["sha256"][:], file["bounds"][:]
        self.sources = [name.decode() for name in file["source"][:]]
        audio = file["audio"]
        expected = {"pcm": np.dtype("<i2"), "flac": np.dtype("u1")}.get(self.encoding)
        if (
            audio.dtype != expected
            or audio.ndim != 1
            or self.samples.dtype.kind != "i"
            or self.bounds.dtype.kind != "i"
        ):
            raise StoreError(f"{self.path}: audio of {audio.dtype} {audio.shape} is not what this project writes")
        offset = audio.id.get_offset()
        if offset is None and audio.shape[0]:
            raise StoreError(
                f"{self.path}: its audio is chunked, compressed or in another file, so that it cannot be mapped; "
                "copy the shard as it was written (h5repack -l CONTI -f NONE), or acquire it again"
            )
        self._place = (audio.dtype, 0 if offset is None else offset, audio.shape[0])
        n = len(self.ids)
        lengths = np.diff(self.bounds)
        sound = len(self.bounds) == n + 1 and len(self.samples) == len(self.sha256) == n and self.bounds[0] == 0
        sound = sound and self.bounds[-1] == audio.shape[0] and bool((lengths >= 0).all())
        if self.encoding == "pcm":
            sound = sound and bool((lengths == self.samples).all())
        end = self._place[1] + audio.shape[0] * audio.dtype.itemsize
        if not sound or self.path.stat().st_size < end:
            raise StoreError(f"{self.path}: the index does not fit the audio; delete the shard and acquire it again")

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_audio": None}

    @property
    def audio(self) -> np.ndarray:
        """All samples (or bytes) end to end, memory-mapped."""
        if self._audio is None:
            dtype, offset, size = self._place
            mapped = np.memmap(self.path, dtype, "r", offset, (size,)) if size else np.zeros(0, dtype)
            # As a plain array, because slicing an np.memmap takes ten times as long.
            self._audio = mapped.view(np.ndarray)
        return self._audio

    def __getitem__(self, i: int) -> np.ndarray:
        part = self.audio[self.bounds[i] : self.bounds[i + 1]]
        return part if self.encoding == "pcm" else _decode_flac(part.tobytes())

    def read(self, clips: np.ndarray, starts: np.ndarray, out: Sequence[np.ndarray]) -> None:
        """Fill each of `out`, int16 [samples], with the samples of a clip, and with zeros after its end.

        The file is read, not mapped: a map of a file that shrinks ends the process.

        Args:
            clips: [cuts] int64, positions of the clips.
            starts: [cuts] int64, the samples at which the cuts begin.
        Raises:
            UserError: the shard has shrunk or changed since it was opened.
        """
        (dtype, offset, _), counts = self._place, np.maximum(self.samples[clips] - starts, 0).tolist()
        cuts = [row[:count] for row, count in zip(out, counts)]
        if self.encoding == "pcm":
            begin = offset + (self.bounds[clips] + starts) * dtype.itemsize
            self._file.read(zip(begin.tolist(), cuts))
        else:
            for cut, clip, start in zip(cuts, clips.tolist(), starts.tolist()):
                data = np.empty(self.bounds[clip + 1] - self.bounds[clip], np.uint8)
                self._file.read([(offset + int(self.bounds[clip]), data)])
                cut[:] = _decode_flac(data.tobytes())[start : start + len(cut)]
        for row, cut in zip(out, cuts):
            row[len(cut) :] = 0


class Store:
    """Clips of several shards, in the order of the shards and sorted by id within each.

    Attributes:
        ids: clip ids.
        durations: [clips] float64, seconds of stored audio.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.shards = [Shard(path) for path in paths]
        self.ids = [name for shard in self.shards for name in shard.ids]
        sizes = [len(shard) for shard in self.shards]
        self._shard = np.repeat(np.arange(len(sizes)), sizes)
        self._row = np.concatenate([np.arange(n) for n in sizes]) if sizes else np.zeros(0, np.int64)
        self.samples = np.concatenate([s.samples for s in self.shards]) if sizes else np.zeros(0, np.int64)
        self.durations = self.samples / SAMPLE_RATE
        self._index = {name: i for i, name in enumerate(self.ids)}
        if len(self._index) != len(self.ids):
            raise StoreError("a clip occurs in two shards: the shards are of different plans; acquire them again")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._index

    def index(self, clip_id: str) -> int:
        """Position of a clip; KeyError if it is not stored."""
        return self._index[clip_id]

    def __getitem__(self, i: int) -> np.ndarray:
        """Samples of clip `i`: int16 [samples], a read-only view of the file for PCM."""
        return self.shards[self._shard[i]][self._row[i]]

    def read(self, clips: np.ndarray, starts: np.ndarray, out: np.ndarray) -> None:
        """Fill the rows of `out`, int16 [cuts, samples]: see :meth:`Shard.read`."""
        shards = self._shard[clips]
        for k in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == k)
            self.shards[k].read(self._row[clips[rows]], starts[rows], [out[i] for i in rows.tolist()])

    def verify(self) -> Iterator[str]:
        """Decode every clip and compare it with its recorded hash; yields a sentence for each that differs."""
        for shard in self.shards:
            for i, name in enumerate(shard.ids):
                try:
                    samples = shard[i]
                except (RuntimeError, ValueError) as error:
                    yield f"{shard.path}: clip {name} cannot be decoded ({error})"
                    continue
                sound = len(samples) == shard.samples[i] and digest(samples) == shard.sha256[i].tobytes().hex()
                if not sound:
                    yield f"{shard.path}: clip {name} is not what was stored (SHA-256 differs)"
