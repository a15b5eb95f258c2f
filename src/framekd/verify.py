"""Integrity of what a run keeps: every file that has a recorded sum or a structure is compared with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import safetensors

from framekd.checkpoints import SPEC, WEIGHTS, read_spec
from framekd.config import UserError
from framekd.files import sha256_of, write_json
from framekd.manifest import State, read_manifest
from framekd.pipeline.kept import FOLDER
from framekd.store import FORMAT, Shard, Store, StoreError

SUMS = "sums.json"
"""The file in a folder of results that holds the SHA-256 of each file that has no sum of its own."""
BLOCK = 1 << 24
SECOND = (FOLDER, ".work")
"""Hidden folders where finished work is kept a second time."""


def verify(directory: str | Path, *, record: bool = True) -> tuple[int, list[str]]:
    """Check everything that is kept below a folder.

    Checkpoints are compared with the SHA-256 in their specification; stores with that of each clip and with their
    manifest; fetched files with the .sha256 beside them. The sum of any other file (ensembles, specifications, records
    of logs, tables) is recorded in `sums.json` when it is first verified: a later call finds a file whose content has
    changed although its size and time of change have not, which is what a failing disk does. A file that a job has
    made again has another time, and is recorded anew.

    Args:
        directory: results, data, or a folder in them.
        record: write the sums of files that are new.
    Returns:
        The number of files checked, and a sentence for each that is damaged.
    Raises:
        UserError: there is no such folder, or its sums.json is damaged.
    """
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the results, such as results/demo")
    known = _known(root / SUMS)
    found, sums, count = list[str](), dict[str, dict[str, Any]](), 0
    for path in _files(root):
        count += 1
        before = len(found)
        found += _structure(path)
        about, name = path.stat(), path.relative_to(root).as_posix()
        now = {"bytes": about.st_size, "changed_ns": about.st_mtime_ns, "sha256": sha256_of(path)}
        old = known.get(name)
        same = old is not None and all(old.get(key) == now[key] for key in ("bytes", "changed_ns"))
        if old is not None and same and old.get("sha256") != now["sha256"]:
            sums[name] = old
            if len(found) == before:
                found.append(f"{path}: its content is not what was recorded (SHA-256 differs); delete it to remake it")
        elif len(found) == before:
            sums[name] = now
    lost = [name for name in known if name not in sums and not (root / name).exists()]
    if record and (sums != known or lost):
        write_json(root / SUMS, {"format": 1, "files": sums})
    return count, found


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["files"]
        if not isinstance(content, dict) or not all(isinstance(about, dict) for about in content.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged; delete it, and all sums are recorded anew") from None
    return content


def _files(root: Path) -> Iterator[Path]:
    """Files to check, sorted. Logs that grow, and what running jobs are writing, are left out.

    What is kept a second time is another file only where the file system has no hard links, or the first is gone.
    """
    for place, folders, files in os.walk(root):
        folders[:] = sorted(n for n in folders if n in SECOND or (not n.startswith(".") and n != "tensorboard"))
        second = not {*SECOND}.isdisjoint(Path(place).relative_to(root).parts)
        for name in sorted(files):
            path = Path(place) / name
            growing = name.startswith(".") or path.suffix in (".log", ".lock", ".part", ".tag") or name == SUMS
            if second and not growing:
                growing = not (path.parent.parent.name == FOLDER or name.startswith("finished."))
                growing = growing or path.stat().st_nlink > 1
            if not growing and path.is_file():
                yield path


def _structure(path: Path) -> Iterator[str]:
    """What is wrong with a file by itself and the files beside it."""
    try:
        if path.name == SPEC:
            yield from _checkpoint(path)
        elif path.name == WEIGHTS and not path.with_name(SPEC).is_file():
            yield f"{path}: no {SPEC} beside it; copy both files of the checkpoint again"
        elif path.suffix in (".h5", ".hdf5"):
            yield from _hdf5(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors" and path.name != WEIGHTS:
            with safetensors.safe_open(path, "np") as file:
                file.keys()
        elif path.suffix == ".sha256" and (file := path.with_suffix("")).is_file():
            words = path.read_text(encoding="utf-8").split()
            if not words or sha256_of(file) != words[0]:
                yield f"{file}: its SHA-256 is not that in {path.name}; delete both to fetch it again"
    except (
        UserError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield said if said.startswith(str(path)) else f"{path}: damaged ({said}); delete it to remake it"


def _checkpoint(path: Path) -> Iterator[str]:
    spec, weights = read_spec(path.parent), path.with_name(WEIGHTS)
    if not weights.is_file():
        yield f"{weights}: missing beside its {SPEC}; copy both files of the checkpoint again"
    elif sha256_of(weights) != spec.get("weights_sha256"):
        yield f"{weights}: its SHA-256 is not that in {SPEC}; delete the folder to train it again, or copy it again"


def _hdf5(path: Path) -> Iterator[str]:
    """A shard is decoded and compared with its sums and its manifest; any other file is read to the end."""
    with h5py.File(path, "r") as file:
        ours = file.attrs.get("format") == FORMAT
        if not ours:
            for data in [item for item in file.values() if isinstance(item, h5py.Dataset)]:
                rows = max(1, BLOCK // max(1, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64))))
                for i in range(0, data.shape[0] if data.shape else 0, rows):
                    _ = data[i : i + rows]  # a damaged chunk cannot be read
    if not ours:
        return
    yield from Store([path]).verify()
    manifest = path.with_suffix(".manifest.tsv")
    if not manifest.is_file():
        return
    shard = Shard(path)
    sums = {name: shard.sha256[i].tobytes().hex() for i, name in enumerate(shard.ids)}
    listed = {entry.clip_id: entry.sha256 for entry in read_manifest(manifest) if entry.state is State.OK}
    if differing := sorted(name for name in sums.keys() | listed.keys() if sums.get(name) != listed.get(name)):
        raise StoreError(f"{path}: clip {differing[0]} is not that of {manifest.name} ({len(differing)} clips differ)")
