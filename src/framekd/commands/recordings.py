"""Which recordings a command line names, and where the results of each go."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framekd.errors import UserError, printable
from framekd.files import disk_full

MEDIA = frozenset(
    f".{suffix}"
    for suffix in (
        *("wav", "w64", "flac", "mp3", "mp2", "opus", "ogg", "oga", "m4a", "aac", "wma", "amr", "aif", "aiff", "au"),
        *("caf", "mka", "webm", "mkv", "mp4", "m4v", "mov", "3gp", "avi", "flv", "ts", "mpg", "mpeg", "wmv"),
    )
)
"""Suffixes of the files that are taken from a folder. A file that is named itself may have any name."""
STDIN = "-"


@dataclass(frozen=True)
class Recording:
    """An input.

    Attributes:
        name: as a message calls it.
        path: of the file; ``-`` for standard input.
        stem: path of its results without their suffixes.
    """

    name: str
    path: Path
    stem: Path


def collect(given: Sequence[str], out: str | None) -> tuple[list[Recording], list[str]]:
    """The recordings that files, folders, patterns and ``-`` name.

    Without `out`, results go beside each file. With it, a folder's tree is kept below `out`. If two inputs would have
    one name there, all keep their folders below the deepest folder that holds all of them.

    Returns:
        The recordings, each once; and a sentence for each word that names none.
    Raises:
        UserError: `out` is a file, or two inputs would still have one name.
    """
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out}: it is a file; give a folder")
    found: dict[str, tuple[Path, Path]] = {}  # absolute path → (path as given, path below `out`)
    problems: list[str] = []
    for word in given:
        if word == STDIN:
            found.setdefault(STDIN, (Path(STDIN), Path("stdin")))
            continue
        files = list(_files(word))
        if not files:
            why = "there is no audio in this folder" if Path(word).is_dir() else "no such file"
            problems.append(f"{printable(word)}: {why}")
        for path, below in files:
            found.setdefault(_absolute(path), (path, below))
    if out is None:
        stems = {key: Path("stdin") if key == STDIN else path for key, (path, _) in found.items()}
    else:
        stems = {key: Path(out) / below for key, (_, below) in found.items()}
        if len(set(stems.values())) < len(stems):
            files_only = [Path(key) for key in found if key != STDIN]
            base = os.path.commonpath([path.parent for path in files_only])
            stems |= {str(path): Path(out) / path.relative_to(base) for path in files_only}
    if len({_absolute(stem) for stem in stems.values()}) < len(stems):
        raise UserError("the results of standard input would overwrite those of the file called stdin; rename the file")
    return [Recording(printable(str(path)), path, stems[key]) for key, (path, _) in found.items()], problems


def _absolute(path: Path) -> str:
    return os.path.normpath(path.absolute())


def _files(word: str) -> Iterator[tuple[Path, Path]]:
    """(path, path below the folder that was named) of the files of one word of the command line."""
    given = Path(word)
    if given.is_dir():
        for folder, folders, names in os.walk(given):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(folder) / name for name in sorted(names)):
                if path.suffix.lower() in MEDIA and not path.name.startswith("."):
                    yield path, path.relative_to(given)
    elif given.exists() or given.is_symlink():
        yield given, Path(given.name)
    elif magic := [i for i, part in enumerate(given.parts) if glob.has_magic(part)]:
        fixed = Path(*given.parts[: magic[0]])
        for path in sorted(fixed.glob(str(Path(*given.parts[magic[0] :])))):
            if path.is_file() and path.suffix.lower() in MEDIA:
                yield path, path.relative_to(fixed)


@contextmanager
def on_disk(recording: Recording) -> Iterator[Path]:
    """The file of a recording; standard input is copied to a temporary file first, whatever its length.

    Raises:
        UserError: there is no room for the copy.
    """
    if recording.path != Path(STDIN):
        yield recording.path
        return
    with tempfile.NamedTemporaryFile(prefix="framekd-", suffix=".audio") as file:
        try:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
        except OSError as error:
            if not disk_full(error):
                raise
            where = tempfile.gettempdir()
            raise UserError(f"{where}: no room for a copy of standard input; free some, or set TMPDIR") from error
        yield Path(file.name)


def sentence_about(recording: Recording, path: Path, error: BaseException) -> str:
    """One line that begins with the recording's name instead of the path that was read."""
    text = " ".join(str(error).replace(str(path), recording.name).split())
    return text if recording.name in text else f"{recording.name}: {text}"
