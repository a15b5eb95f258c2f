"""The tables as print: lines and columns of the paper, as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from framekd.tables.rows import CHECKPOINT_TITLES, MODES, title_of

MINIATURE_NOTE = (
    "This run used the embedded miniature, not AudioSet, and small models: the published numbers stand beside ours "
    "for reference only, and the two are not comparable."
)


def percent(mean: float, std: float, paper: float, *, signed: bool = True) -> str:
    """``45.8 ± 0.2 (46.1, −0.3)``: ours, the seeds' spread, the paper's and the difference."""
    text = f"{mean:.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")
    if math.isnan(paper):
        return text
    return f"{text} ({paper:.1f}, {mean - paper:+.1f})".replace("-", "−") if signed else f"{text} ({paper:.1f})"


def _cell(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return percent(row["mean"], row["std"], row["published"])


def wide_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Table I (or the teachers) as printed: one line a setting, one column a model."""
    models = list(dict.fromkeys(frame["model"]))
    rows = []
    for setting in dict.fromkeys(frame["setting"]):
        part = frame[frame["setting"] == setting]
        cells = {m: _cell(part[part["model"] == m]) if (part["model"] == m).any() else "–" for m in models}
        rows.append({"setting": title_of(setting), **cells})
    return pd.DataFrame(rows)


def wide_table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Table II as printed: a line per model and checkpoint; frozen, then fine-tuned, each with the three tasks."""
    rows = []
    for model, checkpoint in dict.fromkeys(zip(frame["model"], frame["checkpoint"])):
        part = frame[(frame["model"] == model) & (frame["checkpoint"] == checkpoint)]
        cells = {
            f"{MODES.get(mode, mode)} {task}": _cell(part[(part["mode"] == mode) & (part["task"] == task)])
            for mode, task in dict.fromkeys(zip(part["mode"], part["task"]))
        }
        rows.append({"model": model, "checkpoint": CHECKPOINT_TITLES.get(checkpoint, checkpoint), **cells})
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, *, title: str, notes: Iterable[str] = ()) -> str:
    """A Markdown table of strings with its title above and its notes below."""
    heads = [str(name) for name in frame.columns]
    lines = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join([*lines, *(line for note in notes for line in ("", note))]) + "\n"


def latex(frame: pd.DataFrame, *, title: str, label: str, notes: Iterable[str] = ()) -> str:
    """A booktabs table of strings, ready to be input; the notes follow the caption."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "−": "$-$", "–": "--"}

    def clean(value: object) -> str:
        return "".join(special.get(char, char) for char in str(value))

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{clean(' '.join([title, *notes]))}}}"]
    lines += [rf"\label{{{label}}}", rf"\begin{{tabular}}{{l{'c' * (len(frame.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(clean, frame.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(clean, row)) + r" \\" for row in frame.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def notes_of(*, miniature: bool) -> list[str]:
    """What has to stand below every table of a run."""
    reading = "Each cell: mean ± sample standard deviation (published value, difference)."
    return [reading, MINIATURE_NOTE] if miniature else [reading]
