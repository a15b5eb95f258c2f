"""The paper's tables from the evaluations' rows, with the published numbers beside ours.

Every function reads CSV rows that a run wrote and returns a data frame; `write_*` puts it into the results folder as
.csv, .md and .tex. Numbers are percent. Equal inputs give equal bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from framekd.config import Config
from framekd.tables.build import orderings, significance, table1, table2, teachers
from framekd.tables.layout import MINIATURE_NOTE, latex, markdown, notes_of, wide_settings, wide_table2
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    MODES,
    PUBLISHED,
    TASKS,
    ordered_settings,
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
    "notes_of",
    "ordered_settings",
    "orderings",
    "significance",
    "table1",
    "table2",
    "teachers",
    "title_of",
    "wide_settings",
    "wide_table2",
    "write_csv",
    "write_orderings",
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


def write_table1(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Write table1.csv, .md and .tex into `results_dir`."""
    frame = table1(results_dir, config, published_dir=published_dir)
    path = Path(results_dir) / "table1.csv"
    _write_all(path, frame, wide_settings(frame), title=TITLES["table1"], notes=notes_of(config))
    return frame


def write_teachers(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Write teachers.csv, .md and .tex into `results_dir`."""
    frame = teachers(results_dir, config, published_dir=published_dir)
    path = Path(results_dir) / "teachers.csv"
    _write_all(path, frame, wide_settings(frame), title=TITLES["teachers"], notes=notes_of(config))
    return frame


def write_table2(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Write table2.csv, .md and .tex into `results_dir`."""
    frame = table2(results_dir, config, published_dir=published_dir)
    path = Path(results_dir) / "table2.csv"
    _write_all(path, frame, wide_table2(frame), title=TITLES["table2"], notes=notes_of(config))
    return frame


def write_significance(results_dir: str | Path, config: Config, *, seed: int = 0) -> pd.DataFrame:
    """Write significance.csv into `results_dir`."""
    frame = significance(results_dir, config, seed=seed)
    write_csv(Path(results_dir) / "significance.csv", frame, digits=4)
    return frame


def write_orderings(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Write orderings.csv into `results_dir`."""
    frame = orderings(results_dir, config, published_dir=published_dir)
    write_csv(Path(results_dir) / "orderings.csv", frame)
    return frame
