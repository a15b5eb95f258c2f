"""The store in the layouts that other projects read: a folder of files, or PaSST's HDF5 of mp3 bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import soundfile

from framekd.config import UserError
from framekd.labels import parse_clip_id
from framekd.store import SAMPLE_RATE, Store


def export_folder(
    shards: Iterable[str | Path], directory: str | Path, *, suffix: str = ".flac", name: str = "Y{clip_id}"
) -> int:
    """Write every clip as a file `name` + `suffix` (.wav, .flac, .ogg, .mp3); returns how many.

    `name` may hold {clip_id}, {ytid}, {start_ms} and {start} (seconds). Files that exist are left alone; each is
    written whole or not at all. UserError if two clips would have one name.
    """
    store, directory = Store(shards), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for i, clip in enumerate(store.ids):
        ytid, start = parse_clip_id(clip)
        stem = name.format(clip_id=clip, ytid=ytid, start_ms=start, start=f"{start / 1000:g}")
        if stem in written:
            raise UserError(f"{clip} and {written[stem]} would both be {stem}{suffix}; use {{clip_id}} in the name")
        written[stem] = clip
        path = directory / f"{stem}{suffix}"
        if path.exists():
            continue
        aside = directory / f".{os.getpid()}.tmp{suffix}"
        try:
            soundfile.write(aside, store[i], SAMPLE_RATE)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return len(written)


def export_hdf5(shards: Iterable[str | Path], path: str | Path) -> int:
    """Write PaSST's layout: ``audio_name`` (Y<id>.mp3) and ``mp3`` (each clip as an mp3 file); returns how many."""
    store, path = Store(shards), Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    names = [f"Y{parse_clip_id(clip)[0]}.mp3" for clip in store.ids]
    try:
        with h5py.File(aside, "w") as file:
            file.create_dataset("audio_name", data=np.array([name.encode() for name in names], dtype="S20"))
            rows = file.create_dataset("mp3", (len(names),), h5py.vlen_dtype(np.uint8))
            for i in range(len(names)):
                buffer = io.BytesIO()
                soundfile.write(buffer, store[i], SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
                rows[i] = np.frombuffer(buffer.getvalue(), np.uint8)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return len(names)
