"""Writing files so that each is whole or absent: write beside the target, flush to disk, rename."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from framekd.errors import UserError


def disk_full(error: BaseException) -> bool:
    """Whether an error of a write means that a disk, a quota or a file size limit is used up.

    HDF5 and safetensors report the system's message without its number.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(os.strerror(n) in str(error) for n in numbers)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; rename it to `path` when the block ends well, remove it otherwise.

    The temporary file is in the same folder, has the same suffix (some writers choose the format by it) and the
    process's number in its name, so that two processes never write to the same one. Folders are made as needed.

    Raises:
        UserError: the disk is full. `path` is then as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        if isinstance(error, UserError) or not disk_full(error):
            raise
        raise UserError(f"{path}: the disk is full; free some space and try again.") from error
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Write a folder's list of names to disk, so that a rename outlasts a power cut."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some file systems do not open folders
    try:
        os.fsync(number)
    except OSError:
        pass
    finally:
        os.close(number)


def remove_partial(path: str | Path) -> None:
    """Remove what killed processes left of `path`. No other process may be writing it."""
    path = Path(path)
    for aside in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Line ends are kept as they are."""
    with replacing(path) as aside:
        aside.write_bytes(text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SteadyFile:
    """A file that is read at many places while a job runs, and must not change meanwhile.

    It is read, not mapped into memory, because a map of a file that shrinks ends the process without a message. Several
    threads may read at once. Each process opens the file for itself.

    Args:
        path: the file.
        advice: what the user should do if it changed, the end of a sentence.
    """

    def __init__(self, path: str | Path, advice: str) -> None:
        self.path, self.advice = Path(path), advice
        self._state = self._of(self.path.stat())
        self._open: tuple[int, BinaryIO] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @staticmethod
    def _of(stat: os.stat_result) -> tuple[int, int]:
        return stat.st_size, stat.st_mtime_ns

    def read(self, places: Iterable[tuple[int, Any]]) -> None:
        """Fill buffers, one after the other, then look whether the file is as it was.

        Args:
            places: (offset, buffer) of each; a contiguous writable buffer, such as a NumPy array, gets the bytes from
                its offset on.
        Raises:
            UserError: the file is not as it was when this object was made.
        """
        held = self._open
        if held is None or held[0] != os.getpid():
            try:
                held = self._open = os.getpid(), self.path.open("rb", buffering=0)
            except OSError as error:
                raise UserError(f"{self.path} cannot be read any more ({error.strerror}); {self.advice}") from None
        handle = held[1].fileno()
        for offset, out in places:
            view = memoryview(out)
            view = view.cast("B") if view.nbytes else view
            while len(view) and (count := os.preadv(handle, [view], offset)):
                offset, view = offset + count, view[count:]
            if len(view):
                raise self._changed()
        if self._of(os.fstat(handle)) != self._state:
            raise self._changed()

    def check(self) -> None:
        """Raise the error of `read` if the file at this path is not as it was."""
        try:
            same = self._of(self.path.stat()) == self._state
        except OSError:
            same = False
        if not same:
            raise self._changed()

    def _changed(self) -> UserError:
        return UserError(f"{self.path} has changed while this job reads it; {self.advice}")
