"""A log on disk of what a shard's job has done, so that a killed job loses only the clips that it was working on.

Samples are appended to one file, then a line to another. A line counts only if it is complete and its samples have the
recorded hash. Hard links to the finished shard and manifest stay in the folder, so that a later run downloads nothing
again even if the workflow has removed its outputs.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np

from framekd.config import UserError
from framekd.files import disk_full, replacing
from framekd.manifest import Entry, State, read_manifest
from framekd.store import Shard, StoreError, digest


class Journal:
    """Entries of a shard's clips, with the samples of those that came. Safe to use from several threads.

    Args:
        directory: working folder of the shard.
        outputs: paths of the shard's store and manifest, which are read if they exist already.
    """

    def __init__(self, directory: str | Path, outputs: tuple[Path, Path]) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, Entry] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._shard: Shard | None = None
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        kept = (self.directory / "finished.h5", self.directory / "finished.tsv")
        for store, manifest in (outputs, kept):
            if self._read_finished(store, manifest):
                break
        self._log = self.directory / "journal.jsonl"
        self._audio = self.directory / "audio.pcm"
        self._resume()

    def _read_finished(self, store: Path, manifest: Path) -> bool:
        """Start from a finished shard; False if there is none or it is damaged."""
        if not store.is_file() or not manifest.is_file():
            return False
        try:
            shard, entries = Shard(store), read_manifest(manifest)
        except (StoreError, ValueError):
            return False
        rows = {name: i for i, name in enumerate(shard.ids)}
        for entry in entries:
            if entry.state is State.OK and (
                entry.clip_id not in rows or shard.sha256[rows[entry.clip_id]].tobytes().hex() != entry.sha256
            ):
                return False
        self._shard, self._rows = shard, rows
        self.entries = {entry.clip_id: entry for entry in entries}
        return True

    def _resume(self) -> None:
        """Read what an interrupted job logged, and cut incomplete ends off both files."""
        whole = end = 0
        audio = self._audio.stat().st_size if self._audio.is_file() else 0
        if self._log.is_file():
            with self._log.open("rb") as log, self._audio.open("ab+") as pcm:
                for line in log:
                    try:
                        row = json.loads(line) if line.endswith(b"\n") else None
                    except ValueError:
                        row = None
                    if row is None:
                        break
                    whole += len(line)
                    at, n = row.pop("at"), row.pop("samples")
                    entry = Entry(**{**row, "state": State(row["state"]), "splits": tuple(row["splits"])})
                    if entry.state is State.OK:
                        pcm.seek(at)
                        if at + 2 * n > audio or digest(np.frombuffer(pcm.read(2 * n), "<i2")) != entry.sha256:
                            continue  # power was lost before the samples were on disk
                        self._place[entry.clip_id] = (at, n)
                        end = max(end, at + 2 * n)
                    self.entries[entry.clip_id] = entry
        for path, size in ((self._log, whole), (self._audio, end)):
            with path.open("ab") as file:
                file.truncate(size)
        self._end = end

    def record(self, entry: Entry, samples: np.ndarray | None = None) -> None:
        """Append an entry to the log, its samples first; UserError if the disk is full."""
        with self._lock:
            try:
                self._append(entry, samples)
            except OSError as error:
                if not disk_full(error):
                    raise
                raise UserError(f"{self.directory}: the disk is full; free some space and try again.") from error

    def _append(self, entry: Entry, samples: np.ndarray | None) -> None:
        at, n = self._end, 0
        if samples is not None:
            data = np.ascontiguousarray(samples, "<i2").tobytes()
            with self._audio.open("r+b") as pcm:
                pcm.seek(at)  # not the end of the file, if an earlier write failed half-way
                pcm.write(data)
            n, self._end = len(samples), at + len(data)
            self._place[entry.clip_id] = (at, n)
        row = {**asdict(entry), "state": entry.state.value, "at": at, "samples": n}
        with self._log.open("ab") as log:
            log.write(json.dumps(row).encode() + b"\n")
        self.entries[entry.clip_id] = entry

    def samples(self, clip_id: str) -> np.ndarray:
        """Samples (int16) of a clip whose state is ok."""
        if clip_id in self._place:
            at, n = self._place[clip_id]
            return np.fromfile(self._audio, "<i2", n, offset=at)
        assert self._shard is not None
        return self._shard[self._rows[clip_id]]

    def finish(self, store: Path, manifest: Path) -> None:
        """Link to the finished files and remove the working ones."""
        for made, name in ((store, "finished.h5"), (manifest, "finished.tsv")):
            kept = self.directory / name
            try:
                with replacing(kept) as aside:
                    os.link(made, aside)
            except OSError:  # a file system without hard links: only the outputs themselves remain
                kept.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        self._audio.unlink(missing_ok=True)
