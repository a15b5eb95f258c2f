"""Frame embeddings of recordings, and the files that hold them (:func:`framekd.windows.embedding_stream`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from framekd.audio import DecodeError, decode_stream
from framekd.files import replacing
from framekd.models import FrameModel
from framekd.units import FRAME_RATE, FRAME_SECONDS
from framekd.windows import embedding_stream

BLOCK = 1000  # frames that are copied at once


def embed(
    model: FrameModel, path: str | Path, *, batch_size: int = 8, precision: str = "fp32"
) -> Iterator[Float[np.ndarray, "frames width"]]:
    """Frame embeddings of a file, 25 per second, in the order of time.

    Yields:
        float32; the last frame of all may reach beyond the end of the audio.
    Raises:
        DecodeError: nothing can be decoded, or the file is empty.
        FileNotFoundError: no such file.
    """
    some = False
    for block in embedding_stream(model, decode_stream(path), batch_size=batch_size, precision=precision):
        some = True
        yield block.numpy()
    if not some:
        raise DecodeError(f"{path}: no audio that can be decoded (it is empty)")


def frame_times(n_frames: int) -> Float[np.ndarray, " frames"]:
    """The begin of each frame in seconds."""
    return np.arange(n_frames) / FRAME_RATE


def write_npy(path: Path, parts: Iterable[np.ndarray], width: int) -> int:
    """Write embeddings as `path` (.npy, float32 [frames, width]) and the frames' begins as .times.npy; returns frames.

    The header is written last, since the number of frames is known only then.
    """

    def header(frames: int) -> bytes:
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({frames}, {width}), }}"
        return b"\x93NUMPY\x01\x00\x76\x00" + text.ljust(117).encode() + b"\n"

    count = 0
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(header(0))
        for part in parts:
            file.write(np.ascontiguousarray(part, "<f4").tobytes())
            count += len(part)
        file.seek(0)
        file.write(header(count))
    with replacing(path.with_suffix(".times.npy")) as aside:
        np.save(aside, frame_times(count))
    return count


def write_group(group: h5py.Group, parts: Iterable[np.ndarray], width: int) -> int:
    """Write embeddings into datasets `embeddings` (float32 [frames, width]) and `times` of a group; returns frames.

    They wait in a file without a name until their number is known: HDF5 ends the process when the disk is full while a
    dataset grows.
    """
    with tempfile.TemporaryFile(dir=Path(group.file.filename).parent) as rows:
        count = 0
        for part in parts:
            rows.write(np.ascontiguousarray(part, "<f4").tobytes())
            count += len(part)
        rows.seek(0)
        data = group.create_dataset("embeddings", (count, width), "<f4")
        for at in range(0, count, BLOCK):
            block = np.frombuffer(rows.read(4 * width * BLOCK), "<f4").reshape(-1, width)
            data[at : at + len(block)] = block
    group.create_dataset("times", data=frame_times(count))
    group.attrs["frame_seconds"] = FRAME_SECONDS
    return count
