"""Writing files so that each is whole or absent: write beside the target, flush to disk, rename."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
