"""Unpacking archives (zip, tar) from anywhere: links, paths that lead out and bombs are refused."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from framekd.errors import UserError
from framekd.files import disk_full

MOST_FILES = 1_000_000
"""Members above which an archive is refused."""
LARGEST = 1 << 40
"""Unpacked bytes above which an archive is refused; the largest that is known has 0.13 TB."""
MOST_RATIO = 100
"""How many times its own size an archive may unpack to, above a first `FREE` bytes. Audio packs 10 times at most."""
FREE = 1 << 28
_BLOCK = 1 << 20
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(struct.error, ValueError, NotImplementedError),
)

Wanted = Callable[[str], "str | None"]
"""Where a member goes, by its name: a path within the folder, or None to leave it out."""


def unpack(archive: str | Path, folder: str | Path, wanted: Wanted = lambda name: name) -> list[str]:
    """Unpack an archive into a folder.

    Files get the permissions and times of new files: those of the archive are not kept.

    Args:
        archive: a zip or tar file, the latter possibly compressed.
        folder: where the files go; made if it is absent.
        wanted: which members are unpacked, and where to.
    Returns:
        The unpacked paths within the folder, sorted.
    Raises:
        UserError: it is no archive, broken or incomplete; it is far larger than its file; it has links or other
            special files, a path that leads out of the folder, or two members for one path; or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    out: set[str] = set()
    with reading(archive) as members:
        for name, stream in members:
            place = wanted(name)
            if place is None:
                continue
            if place in out:
                raise UserError(f"{archive}: {place} is in it twice; take another copy of the archive")
            out.add(place)
            _write(stream(), folder / place)
    return sorted(out)


@contextmanager
def reading(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[], IO[bytes]]]]]:
    """Yield the files of an archive: (name, function that opens it), in the order of the archive.

    The names of a zip are all checked before its first file is yielded. Errors of reading become UserErrors.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                yield _zip_members(archive, zipped)
        else:
            with tarfile.open(archive) as tar:
                yield _tar_members(archive, tar)
    except UserError:
        raise
    except _BROKEN as error:
        why = (str(error).splitlines() or ["it ends early"])[0].rstrip(":")
        what = f"{archive} is broken, incomplete or no archive ({why})"
        raise UserError(f"{what}; remove it to fetch it again") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: an encrypted zip
        if disk_full(error):
            raise UserError(f"{archive}: the disk is full while it is unpacked; free some space") from error
        raise UserError(f"{archive} cannot be unpacked ({error}); take another copy of it") from None


def _zip_members(archive: Path, zipped: zipfile.ZipFile) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    size = _Size(archive)
    files = []
    for info in zipped.infolist():
        kind = (info.external_attr >> 16) & 0o170000
        if kind not in (0, 0o100000, 0o040000):
            raise _special(archive, info.filename)
        if not info.is_dir():
            size.add(info.file_size)
            files.append((_safe(archive, info.filename), info))
    for name, info in files:
        yield name, partial(zipped.open, info)


def _tar_members(archive: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    size = _Size(archive)
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise _special(archive, info.name)
        size.add(info.size)
        yield _safe(archive, info.name), partial(_stream, tar, info)
    while tar.fileobj is not None and (block := tar.fileobj.read(_BLOCK)):  # to the sum at the end of a gzip file
        size.add(len(block))


def _stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(info)
    assert found is not None
    return found


class _Size:
    """Counts what an archive unpacks to, and refuses it once that is too much."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.bytes, self.files = archive, 0, 0
        self.most = min(LARGEST, FREE + MOST_RATIO * archive.stat().st_size)

    def add(self, count: int) -> None:
        self.bytes += count
        self.files += 1
        if self.bytes > self.most or self.files > MOST_FILES:
            raise UserError(
                f"{self.archive} would unpack to more than {self.most / 1e9:.1f} GB or {MOST_FILES} files, which no "
                "such data set does; take another copy of the archive"
            )


def _safe(archive: Path, name: str) -> str:
    """The normal form of a member's path; UserError if it leads out of the folder."""
    path = PurePosixPath(name)
    parts = [part for part in path.parts if part != "."]
    windows = "\\" in name or (len(name) > 1 and name[1] == ":")
    if not parts or path.is_absolute() or ".." in parts or windows or any(ord(c) < 32 for c in name):
        raise UserError(
            f"{archive}: its member {name[:80]!r} leads out of the folder; take another copy of the archive"
        )
    return "/".join(parts)


def _special(archive: Path, name: str) -> UserError:
    return UserError(f"{archive}: its member {name[:80]!r} is a link or special file; take another copy of the archive")


def _write(stream: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with stream, path.open("xb") as file:
        shutil.copyfileobj(stream, file, _BLOCK)
