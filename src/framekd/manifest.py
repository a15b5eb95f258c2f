"""The tables of wanted clips and of what became of them (manifests), and the counts that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from framekd.config import UserError
from framekd.files import replacing


class State(StrEnum):
    """What became of a clip: it came (ok), or why it did not."""

    OK = "ok"
    GONE = "gone"  # removed, or the address does not exist
    PRIVATE = "private"  # access is denied
    GEO = "geo"  # blocked in this country
    AGE = "age"  # behind an age check
    RATE_LIMITED = "rate_limited"  # too many requests
    BOT_CHECK = "bot_check"  # the host asks for proof of a human visitor
    NETWORK = "network"  # no or broken answer: time-outs, server errors, truncated transfers
    CORRUPT = "corrupt"  # complete, but cannot be decoded as audio
    TOO_SHORT = "too_short"  # ends before the clip begins, or shortly after
    MISSING = "missing"  # in no local source, and downloading is off
    PENDING = "pending"  # not tried yet


RETRYABLE = frozenset({State.RATE_LIMITED, State.BOT_CHECK, State.NETWORK, State.MISSING, State.PENDING})
"""States in which another run tries the download again; the others are final."""


def retryable(state: State | str) -> bool:
    """Whether another run should try to download a clip in `state`."""
    return State(state) in RETRYABLE


@dataclass(frozen=True, slots=True)
class Clip:
    """A wanted clip: its video, its begin and end there, its splits, and the shard that acquires it."""

    clip_id: str
    ytid: str
    start_ms: int
    end_ms: int
    splits: tuple[str, ...]
    shard: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a manifest.

    Attributes:
        state: what became of the clip.
        reason: one line, empty for ok.
        seconds: duration of the stored audio; 0 unless ok.
        sha256: of the stored samples (16-bit little endian); empty unless ok.
        source: where the audio came from: "youtube.com", "folder", …
    """

    clip_id: str
    splits: tuple[str, ...]
    state: State
    reason: str = ""
    seconds: float = 0.0
    sha256: str = ""
    source: str = ""


def one_line(text: object, *, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters, as a cell of a TSV."""
    return " ".join(str(text).split())[:limit]


def _rows(path: Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if tuple(file.readline().rstrip("\n").split("\t")) != header:
                raise UserError(f"{path}: line 1: expected the columns {' '.join(header)}")
            for number, line in enumerate(file, 2):
                row = line.rstrip("\n").split("\t")
                if len(row) != len(header):
                    raise UserError(f"{path}: line {number}: expected {len(header)} columns, not {len(row)}")
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; delete it to make it again") from None


def _write_rows(path: str | Path, header: tuple[str, ...], rows: Iterable[str]) -> None:
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(header) + "\n")
        file.writelines(row + "\n" for row in rows)


_CLIPS = tuple(field.name for field in fields(Clip))
_ENTRIES = tuple(field.name for field in fields(Entry))


def write_clips(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write the table of wanted clips."""
    rows = (f"{c.clip_id}\t{c.ytid}\t{c.start_ms}\t{c.end_ms}\t{','.join(c.splits)}\t{c.shard}" for c in clips)
    _write_rows(path, _CLIPS, rows)


def read_clips(path: str | Path, *, shard: int | None = None) -> list[Clip]:
    """Read the table of wanted clips, all or those of one shard."""
    path, wanted = Path(path), None if shard is None else str(shard)
    splits: dict[str, tuple[str, ...]] = {}
    out = []
    for number, (name, ytid, start, end, listed, its_shard) in _rows(path, _CLIPS):
        if wanted is not None and its_shard != wanted:
            continue
        try:
            where = splits.setdefault(listed, tuple(listed.split(",")))
            out.append(Clip(name, ytid, int(start), int(end), where, int(its_shard)))
        except ValueError:
            raise UserError(f"{path}: line {number}: start, end and shard must be whole numbers") from None
    return out


def write_manifest(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write a manifest, sorted by clip id."""
    rows = []
    for entry in sorted(entries, key=lambda e: e.clip_id):
        values = list(astuple(replace(entry, reason=one_line(entry.reason))))
        values[1], values[2], values[4] = ",".join(entry.splits), entry.state.value, f"{entry.seconds:.4f}"
        rows.append("\t".join(values))
    _write_rows(path, _ENTRIES, rows)


def read_manifest(path: str | Path) -> list[Entry]:
    """Read a manifest."""
    path = Path(path)
    out = []
    for number, (name, splits, state, reason, seconds, sha256, source) in _rows(path, _ENTRIES):
        try:
            entry = Entry(name, tuple(splits.split(",")), State(state), reason, float(seconds), sha256, source)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        out.append(entry)
    return out


def coverage(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Clips per split and state: {split: {"wanted": n, "ok": n, …}}; states without clips are omitted."""
    out: dict[str, dict[str, int]] = {}
    for entry in entries:
        for split in entry.splits:
            counts = out.setdefault(split, {"wanted": 0, "ok": 0})
            counts["wanted"] += 1
            counts[entry.state.value] = counts.get(entry.state.value, 0) + 1
    return {split: out[split] for split in sorted(out)}
