"""What is finished stays: results of a job that Snakemake's clean-up cannot reach, and packs that outlive a failure.

Snakemake deletes all declared outputs of a job that fails or is killed, also those that were whole. So every long piece
of work leaves its files a second time in ``.finished`` beside them, by hard link. When its job runs again, a piece with
the same :func:`key` is given back in place of doing it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from framekd.config import UserError, identity
from framekd.files import replacing, sha256_of, write_text
from framekd.hdf5 import refuse_endless
from framekd.jobs import Job
from framekd.lease import Lease
from framekd.pipeline.log import OTHERS_KEPT
from framekd.train import Diverged, Stopped

FOLDER = ".finished"
KEY = "key"
READ_WHOLE = 1 << 30
"""Larger files are compared by size and time, smaller ones by content."""


def key(job: Job, inputs: Mapping[str, Any], **own: Any) -> str:
    """What a piece of work depends on, as a hash.

    Args:
        job: its keys count, but for inert ones and those that `own` replaces.
        inputs: files by name; ``coverage``, which jobs wait for and do not read, does not count.
        own: what this piece has of its own, such as the recipe of one model. None removes a key of the job.
    """
    about = {**identity(job), **{name: identity(value) for name, value in own.items()}}
    files = {
        name: [_mark(path) for path in ([value] if isinstance(value, str) else value)]
        for name, value in sorted(inputs.items())
        if name != "coverage"
    }
    text = json.dumps([about, files], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _mark(path: str) -> str:
    """What is in a file: its content, the identity that an ensemble states, or (of large ones) size and time."""
    about = Path(path).stat()
    if Path(path).suffix == ".h5" and h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            if "identity" in file.attrs:
                refuse_endless(path, [])
                return str(file.attrs["identity"])
    return sha256_of(path) if about.st_size < READ_WHOLE else f"{path} {about.st_size} {about.st_mtime_ns}"


def keep(outputs: Sequence[str | Path], name: str) -> None:
    """Leave `outputs`, which are whole and lie in one folder, a second time beside them, under the key `name`."""
    folder = _folder(outputs)
    _remove(folder)
    folder.mkdir(parents=True)
    for path in map(Path, outputs):
        _link(path, folder / path.name)
    write_text(folder / KEY, name)  # last: a folder without it is not whole


def give_back(outputs: Sequence[str | Path], name: str) -> bool:
    """Put `outputs` in place if they were kept under the key `name`; what was kept under another is removed."""
    folder = _folder(outputs)
    if not (folder / KEY).is_file():
        return False
    whole = all((folder / Path(path).name).is_file() for path in outputs)
    if (folder / KEY).read_text() != name or not whole:
        _remove(folder)
        return False
    for path in map(Path, outputs):
        _link(folder / path.name, path)
    print(f"{Path(outputs[0]).parent}: was finished before, and is given back from {folder}", flush=True)
    return True


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until no other process, of whatever job, makes the outputs of `directory`; keep others waiting inside."""
    lease = Lease(directory / FOLDER / "lease")
    lease.wait(lambda sentence: print(f"{directory}: {sentence}", flush=True))
    try:
        yield
    finally:
        lease.release()


def _folder(outputs: Sequence[str | Path]) -> Path:
    first = Path(outputs[0])
    return first.parent / FOLDER / first.stem


def _remove(folder: Path) -> None:
    (folder / KEY).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where the file system has none."""
    with replacing(target) as aside:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)


def leave_if(late: str | None) -> None:
    """End the job before its next training if a signal came too late to stop the last one."""
    if late is not None:
        raise Stopped(f"{late} came at the end of a training; the next one has not begun")


def each(pieces: Iterable[tuple[str, Callable[[], str | None]]]) -> None:
    """Do every piece of a job's work, also after one that failed.

    Args:
        pieces: name and function of each; a function returns the name of a signal that came too late to stop it.

    Raises:
        Stopped: at once, as a piece raised it.
        UserError: after the last one, with the sentence of each that failed. That of a single piece is raised as it is.
    """
    pieces, failed, late = list(pieces), list[str](), None
    for name, work in pieces:
        leave_if(late)
        try:
            late = work()
        except Exception as error:
            if len(pieces) == 1:
                raise
            if not isinstance(error, UserError | FileNotFoundError | Diverged):
                traceback.print_exc()
            sentence = " ".join(str(error).split()) or type(error).__name__
            failed.append(f"{name}: {sentence}")
            print(f"{name} failed: {sentence}", flush=True)
    if failed:
        rest = f"; {OTHERS_KEPT}" if len(failed) < len(pieces) else ""
        raise UserError(f"{len(failed)} of {len(pieces)} failed{rest}: {'; '.join(failed)}")
