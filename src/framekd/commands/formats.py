"""Files of events and scores. Each is whole or absent, and scores are written while they are computed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from framekd.files import replacing, write_text
from framekd.units import FRAME_RATE


def beside(stem: Path, suffix: str) -> Path:
    """The path of a result: the name of the recording with a further suffix."""
    return stem.with_name(stem.name + suffix)


def tsv(events: pd.DataFrame, name: str) -> str:
    """A table as of DESED, with the score as a fourth column."""
    times = events.assign(**{key: events[key].map("{:.3f}".format) for key in ("onset", "offset", "score")})
    return times.to_csv(sep="\t", index=False, lineterminator="\n")


def audacity(events: pd.DataFrame, name: str) -> str:
    """A label track that Audacity imports."""
    rows = ([f"{event.onset:.3f}", f"{event.offset:.3f}", event.event_label] for event in events.itertuples())
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n").writerows(rows)
    return out.getvalue()


def rttm(events: pd.DataFrame, name: str) -> str:
    """NIST's Rich Transcription Time Marked; its fields hold no spaces, which become underscores."""
    lines = (
        f"SPEAKER {_word(name)} 1 {event.onset:.3f} {event.offset - event.onset:.3f} <NA> <NA> "
        f"{_word(event.event_label)} {event.score:.3f} <NA>\n"
        for event in events.itertuples()
    )
    return "".join(lines)


def _word(text: str) -> str:
    return re.sub(r"\s+", "_", text)


def _records(events: pd.DataFrame) -> list[dict]:
    rounded = events.round({"onset": 3, "offset": 3, "score": 4})
    return rounded.to_dict("records")


def as_json(events: pd.DataFrame, name: str) -> str:
    """A list of objects."""
    return json.dumps(_records(events), indent=1, ensure_ascii=False) + "\n"


def jsonl(events: pd.DataFrame, name: str) -> str:
    """An object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _records(events))


WRITERS: dict[str, tuple[str, Callable[[pd.DataFrame, str], str]]] = {
    "tsv": (".events.tsv", tsv),
    "json": (".events.json", as_json),
    "jsonl": (".events.jsonl", jsonl),
    "audacity": (".labels.txt", audacity),
    "rttm": (".rttm", rttm),
}
"""Format of events → (suffix of its file, text of events and the recording's name)."""
FORMATS = (*WRITERS, "csv")


def write_events(stem: Path, form: str, events: pd.DataFrame) -> None:
    """Write the events of a recording in one of :data:`WRITERS`."""
    suffix, text = WRITERS[form]
    write_text(beside(stem, suffix), text(events, stem.name))


@contextmanager
def score_table(path: Path, classes: Sequence[str]) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a CSV file of scores: a row per frame with the begin of the frame in seconds, a column per class.

    Yields:
        A function that takes consecutive blocks [frames, classes].
    """
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(["time", *classes])
        frames = 0

        def add(block: np.ndarray) -> None:
            nonlocal frames
            times = (frames + np.arange(len(block))) / FRAME_RATE
            np.savetxt(file, np.column_stack([times, block]), fmt=["%.2f"] + ["%.4f"] * len(classes), delimiter=",")
            frames += len(block)

        yield add


@contextmanager
def score_arrays(path: Path, classes: Sequence[str]) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an .npz file: `scores` float32 [frames, classes], `classes`, and `times`, the begins of the frames (s).

    The scores wait in a file without a name, since the head of the array states how many frames there are.

    Yields:
        A function that takes consecutive blocks [frames, classes].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as rows:
        frames = 0

        def add(block: np.ndarray) -> None:
            nonlocal frames
            rows.write(block.astype("<f4").tobytes())
            frames += len(block)

        yield add
        rows.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (frames, len(classes))}
        with replacing(path) as aside, zipfile.ZipFile(aside, "w") as archive:
            with archive.open("scores.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, head)
                shutil.copyfileobj(rows, file, 1 << 20)
            for name, values in (("classes", np.array(classes, str)), ("times", np.arange(frames) / FRAME_RATE)):
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)
