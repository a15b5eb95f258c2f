"""The paper's tables from the evaluations' rows, with the published numbers beside ours.

Every function reads CSV rows that a run wrote and returns a data frame; `write_*` puts it into the results folder as
.csv, .md and .tex. Numbers are percent. Equal inputs give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from framekd.tables.build import orderings, significance, table1, table2, teachers
from framekd.tables.layout import MINIATURE_NOTE, latex, markdown, notes_of, wide_settings, wide_table2
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    MODES,
    PUBLISHED,
    TASKS,
    Paths,
    evaluations,
    in_order,
    title_of,
)

__all__ = [
    "AVERAGE",
    "CHECKPOINT_TITLES",
    "ENSEMBLE",
    "MINIATURE_NOTE",
    "MODES",
    "PUBLISHED",
    "TASKS",
    "TITLES",
    "evaluations",
    "in_order",
    "notes_of",
    "orderings",
    "significance",
    "table1",
    "table2",
    "teachers",
    "title_of",
    "wide_settings",
    "wide_table2",
    "write_csv",
    "write_significance",
    "write_table1",
    "write_table2",
    "write_teachers",
    "write_text",
]


def write_text(path: str | Path, text: str) -> None:
    """Write aside, then replace: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8", newline="\n")
    aside.replace(path)


def write_csv(path: str | Path, frame: pd.DataFrame, *, digits: int = 3) -> None:
    """Write `frame` with a fixed number of decimals."""
    write_text(path, frame.to_csv(index=False, float_format=f"%.{digits}f", lineterminator="\n"))


def _write_all(path: Path, frame: pd.DataFrame, wide: pd.DataFrame, *, title: str, notes: list[str]) -> None:
    write_csv(path, frame)
    write_text(path.with_suffix(".md"), markdown(wide, title=title, notes=notes))
    write_text(path.with_suffix(".tex"), latex(wide, title=title, label=f"tab:{path.stem}", notes=notes))


TITLES = {
    "table1": "PSDS1 (percent, without variance penalty) on the evaluation clips, per setting.",
    "teachers": "PSDS1 (percent, without variance penalty) of single teachers and of their ensemble.",
    "table2": "Downstream: DESED PSDS1 with variance penalty; DC16-T2 and MAESTRO onset F-measure at 50 ms (percent).",
}


def write_table1(
    settings: Paths, csv: str | Path, *, miniature: bool = False, published_dir: str | Path = PUBLISHED
) -> pd.DataFrame:
    """Table I from the evaluations' .csv by setting, into `csv` with .md and .tex beside it."""
    frame = table1(settings, published_dir=published_dir)
    _write_all(Path(csv), frame, wide_settings(frame), title=TITLES["table1"], notes=notes_of(miniature=miniature))
    return frame


def write_teachers(
    settings: Paths, csv: str | Path, *, miniature: bool = False, published_dir: str | Path = PUBLISHED
) -> pd.DataFrame:
    """The teachers' table from their evaluations' .csv by setting, into `csv` with .md and .tex beside it."""
    frame = teachers(settings, published_dir=published_dir)
    _write_all(Path(csv), frame, wide_settings(frame), title=TITLES["teachers"], notes=notes_of(miniature=miniature))
    return frame


def write_table2(
    paths: Iterable[str | Path], csv: str | Path, *, miniature: bool = False, published_dir: str | Path = PUBLISHED
) -> pd.DataFrame:
    """Table II from the downstream jobs' .csv, into `csv` with .md and .tex beside it."""
    frame = table2(paths, published_dir=published_dir)
    _write_all(Path(csv), frame, wide_table2(frame), title=TITLES["table2"], notes=notes_of(miniature=miniature))
    return frame


def write_significance(
    settings: Paths, csv: str | Path, *, alpha: float, comparisons: int, epsilon: float, seed: int = 0
) -> pd.DataFrame:
    """The significance tests, into `csv`."""
    frame = significance(settings, alpha=alpha, comparisons=comparisons, epsilon=epsilon, seed=seed)
    write_csv(csv, frame, digits=4)
    return frame
