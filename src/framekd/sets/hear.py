"""DCASE 2016 Task 2 and MAESTRO 5h: from HEAR's prepared archives, or from the data sets by HEAR's rule.

HEAR's rule is that of hearpreprocess 2021.1: its random numbers are drawn here in the same way, so that the splits, the
folds and the excerpts are the same ones.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import soundfile

from framekd.audio import decode
from framekd.config import HearData, UserError
from framekd.files import replacing, write_json, write_text
from framekd.layouts.folders import VOCABULARY
from framekd.sets.archives import obtain
from framekd.sets.midi import read_notes
from framekd.units import SAMPLE_RATE
from framekd.unpack import reading, unpack

SECONDS = 120
"""Length of every clip; what is shorter is filled with zeros."""
FOLDS, FOLD_SECONDS = 5, 3600 * 5 / 4
PITCHES = range(21, 109)
Row = tuple[float, float, Any]
"""An event: start and end in milliseconds, label."""


def build(task: str, data: HearData, folder: Path, downloads: Path) -> list[dict[str, str]]:
    """Write the folder of a task; returns what it was made from.

    Raises:
        UserError: an archive cannot be had or unpacked, or is not of this task.
    """
    if data.take == "prepared":
        archive, about = obtain(data.prepared, downloads)
        from_prepared(archive, folder)
        return [about]
    found = [obtain(archive, downloads) for archive in data.original.values()]
    (dcase16 if task == "DC16-T2" else maestro)([path for path, _ in found], folder)
    return [about for _, about in found]


# HEAR's archives -----------------------------------------------------------------------------------------------------


def from_prepared(archive: Path, folder: Path) -> None:
    """Unpack what belongs to the task: the files beside labelvocabulary.csv, and the folders of audio there."""
    unpacked = folder / ".unpacked"
    unpack(archive, unpacked)
    roots = [path.parent for path in unpacked.rglob(VOCABULARY)]
    if len(roots) != 1:
        what = "no" if not roots else f"{len(roots)} files"
        raise UserError(f"{archive} has {what} {VOCABULARY}, so it is not one task of HEAR; check its address")
    for path in sorted(roots[0].iterdir()):
        path.rename(folder / path.name)
    shutil.rmtree(unpacked)


# The data sets, by HEAR's rule ---------------------------------------------------------------------------------------


def three_splits(stems: Iterable[str]) -> dict[str, list[str]]:
    """HEAR's split of names into train, valid and test: 60, 20 and 20 per cent of them."""
    names = sorted(set(stems))
    random.Random("split_train_test_val").shuffle(names)
    n = round(len(names) * 20 / 100)
    return {"train": sorted(names[2 * n :]), "valid": sorted(names[:n]), "test": sorted(names[n : 2 * n])}


def five_folds(stems: Iterable[str]) -> dict[str, list[str]]:
    """HEAR's five folds of names, and the 1.25 hours of 120-s excerpts that it draws from each."""
    names = sorted(set(stems))
    random.Random("split_k_folds").shuffle(names)
    out = {}
    for i, fold in enumerate(np.array_split(np.array(names, dtype=object), FOLDS)):
        drawn = np.random.RandomState(_number(f"SubsampleSplit(fold{i:02d})")).permutation(len(fold))
        out[f"fold{i:02d}"] = sorted(
            np.array(sorted(fold), dtype=object)[drawn][: int(FOLD_SECONDS / SECONDS)].tolist()
        )
    return out


def _number(text: str) -> int:
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16) % (2**32 - 1)


def cut(rows: Iterable[Row]) -> list[Row]:
    """The events that begin within the clip, ended at its end, in order."""
    end = 1000.0 * SECONDS
    return sorted((a, min(b, end), label) for a, b, label in rows if a < end)


def dcase16(archives: Sequence[Path], folder: Path) -> None:
    """DCASE 2016 Task 2: development and public evaluation scenes together, in HEAR's three splits."""
    rows: dict[str, list[Row]] = {}
    for archive in archives:
        for stem, text in _texts(archive, r"(?:^|/)annotation/([^/]+)\.txt"):
            rows[stem] = cut(read_annotation(text, f"{archive.name}: {stem}.txt"))
    if not rows:
        raise UserError(f"{archives[0]} has no folder `annotation`; check the addresses of DCASE 2016 Task 2")
    splits = three_splits(rows)
    home = {stem: split for split, stems in splits.items() for stem in stems}
    seen = set()
    for archive in archives:
        for stem, stream in _members(archive, r"(?:^|/)sound/([^/]+)\.wav"):
            if stem in home:
                seen.add(stem)
                _write_audio(stream(), folder, home[stem], stem)
    _refuse_silent(sorted(set(rows) - seen), len(rows), archives)
    _write_lists(folder, splits, rows)


def read_annotation(text: str, name: str) -> list[Row]:
    """Events of an annotation of DCASE 2016 Task 2: onset and offset in seconds, and the class.

    Seconds become milliseconds as decimal numbers: 3.72 s are 3720 ms, not 3720.0000000000005 ms.
    """
    out: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            onset, offset, label = line.split("\t")
            out.append((float(1000 * Decimal(onset)), float(1000 * Decimal(offset)), label.strip()))
        except (ValueError, InvalidOperation):
            raise UserError(f"{name}, line {number}: expected onset, offset and class, separated by tabs") from None
    return out


def maestro(archives: Sequence[Path], folder: Path) -> None:
    """MAESTRO: the first 120 s of 37 pieces in each of HEAR's five folds, with their notes."""
    archive = archives[0]
    pieces = _pieces(archive)
    splits = five_folds(pieces)
    home = {stem: split for split, stems in splits.items() for stem in stems}
    wanted = {pieces[stem][kind]: (stem, kind) for stem in home for kind in ("midi", "audio")}
    rows: dict[str, list[Row]] = {}
    seen = set()
    with reading(archive) as members:
        for name, stream in members:
            stem, kind = next((wanted[tail] for tail in _tails(name) if tail in wanted), ("", ""))
            if kind == "midi":
                with stream() as file:
                    rows[stem] = cut(piano_rows(file.read(), f"{archive.name}: {name}"))
            elif kind == "audio":
                seen.add(stem)
                _write_audio(stream(), folder, home[stem], stem)
    _refuse_silent(sorted(set(home) - (seen & set(rows))), len(home), archives)
    _write_lists(folder, splits, rows)


def piano_rows(data: bytes, name: str) -> list[Row]:
    """The notes of a MIDI file as events, of the 88 keys of a piano. Times are rounded to 10⁻⁶ ms."""
    notes = read_notes(data, name=name)
    return [(round(1000 * n.onset, 6), round(1000 * n.offset, 6), n.pitch) for n in notes if n.pitch in PITCHES]


def _pieces(archive: Path) -> dict[str, dict[str, str]]:
    """The pieces of MAESTRO by the stem of their recording: the names of recording and MIDI file."""
    tables = list(_texts(archive, r"(?:^|/)(maestro-v[\d.]+)\.csv"))
    if len(tables) != 1:
        raise UserError(f"{archive} has {len(tables)} tables maestro-v3.0.0.csv instead of one; check its address")
    return read_pieces(tables[0][1], f"{archive.name}: {tables[0][0]}.csv")


def read_pieces(text: str, name: str) -> dict[str, dict[str, str]]:
    """The table of MAESTRO by the stem of the recording: {stem: {"audio": …, "midi": …}}."""
    out: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        audio, midi = row.get("audio_filename"), row.get("midi_filename")
        if not audio or not midi:
            raise UserError(f"{name}: expected the columns audio_filename and midi_filename")
        if (stem := PurePosixPath(audio).stem) in out:
            raise UserError(f"{name}: two recordings are called {stem}")
        out[stem] = {"audio": audio, "midi": midi}
    return out


def _tails(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _members(archive: Path, pattern: str) -> Iterable[tuple[str, Callable[[], IO[bytes]]]]:
    """(first group of `pattern`, function that opens the member) of the members that match it."""
    with reading(archive) as members:
        for name, stream in members:
            if (found := re.search(pattern + "$", name)) and not re.search(r"(^|/)(__MACOSX|\._)", name):
                yield found[1], stream


def _texts(archive: Path, pattern: str) -> Iterable[tuple[str, str]]:
    for stem, stream in _members(archive, pattern):
        with stream() as file:
            try:
                yield stem, file.read().decode("utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{archive}: {stem} is no text in UTF-8; take another copy of the archive") from None


def _refuse_silent(lost: Sequence[str], total: int, archives: Sequence[Path]) -> None:
    if lost:
        where = " and ".join(path.name for path in archives)
        raise UserError(f"{where}: {len(lost)} of {total} clips lack their recording or labels, such as {lost[0]}")


def _write_audio(stream: IO[bytes], folder: Path, split: str, stem: str) -> None:
    """The first 120 s of a recording as 16-bit mono at 16 kHz."""
    with stream, tempfile.NamedTemporaryFile(suffix=".wav", dir=folder, prefix=".recording") as whole:
        while block := stream.read(1 << 20):
            whole.write(block)
        whole.flush()
        samples = decode(whole.name, 0, SECONDS)
    out = np.zeros(SECONDS * SAMPLE_RATE, np.int16)
    out[: len(samples)] = samples[: len(out)]
    with replacing(folder / str(SAMPLE_RATE) / split / f"{stem}.wav") as aside:
        soundfile.write(aside, out, SAMPLE_RATE, subtype="PCM_16")


def _write_lists(folder: Path, splits: Mapping[str, Sequence[str]], rows: Mapping[str, Sequence[Row]]) -> None:
    labels = sorted({label for stems in splits.values() for stem in stems for _, _, label in rows[stem]})
    write_text(folder / VOCABULARY, "idx,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels)))
    for split, stems in splits.items():
        content = {
            f"{stem}.wav": [{"label": label, "start": a, "end": b} for a, b, label in rows[stem]] for stem in stems
        }
        write_json(folder / f"{split}.json", content)
