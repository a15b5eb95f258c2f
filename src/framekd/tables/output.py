"""Writing the tables: .csv, and the paper's rows and columns as .md and .tex. Equal inputs give equal bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from framekd.config import MODELS
from framekd.files import write_text
from framekd.tables.build import partial, published_models, significance, step2, table1, table2, teachers
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    CONSTANT,
    ENSEMBLE,
    GUESS,
    MODES,
    PUBLISHED,
    RATES,
    TASKS,
    WITHOUT_PENALTY,
    Paths,
    title_of,
)

MINIATURE_NOTE = (
    "This run used the embedded miniature, not AudioSet, and small models: the published numbers stand beside ours "
    "for reference only, and the two are not comparable."
)

SUBSETS_NOTE = (
    'PSDS1 is on new mixtures of sources that were heard in training; "unheard" is on sources that were never heard.'
)

TABLE2_NOTES = [
    "DESED: PSDS1 with the variance penalty (the paper's; mean less the spread over classes), then without it.",
    "Untrained: heads on weights drawn from a seed. Constant guess: in every frame each class's share of active frames "
    "in training; it has no model, and so it is the same frozen and fine-tuned.",
]


def percent(mean: float, std: float, paper: float) -> str:
    """``45.8 ± 0.2 (46.1, −0.3)``: mean, standard deviation over seeds, published value, difference."""
    text = f"{mean:.1f}" + ("" if math.isnan(std) else f" ± {std:.1f}")
    return text if math.isnan(paper) else f"{text} ({paper:.1f}, {mean - paper:+.1f})".replace("-", "−")


def _cell(row: Mapping[Hashable, Any]) -> str:
    if row["n"] == 0:
        return "missing"
    text = "; ".join([percent(row["mean"], row["std"], row["published"]), *further(row)])
    return f"{text}, n = {row['n']}" if row.get("missing") else text


def further(row: Mapping[Hashable, Any]) -> list[str]:
    """The further values of a cell, such as ``unheard 6.2 ± 0.6``; of Table II only DESED has one."""
    names = [str(key).removeprefix("mean_") for key in row if str(key).startswith("mean_")]
    known = [name for name in names if not math.isnan(row[f"mean_{name}"])]
    return [f"{n.replace('_', ' ')} {percent(row[f'mean_{n}'], row[f'std_{n}'], math.nan)}" for n in known]


def wide_settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Table I or the teachers' table as printed: a row per setting, a column per model."""
    models = list(dict.fromkeys(frame["model"]))
    rows = []
    for setting in dict.fromkeys(frame["setting"]):
        part = frame[frame["setting"] == setting]
        by_model = {row["model"]: row for row in part.to_dict("records")}
        cells = {m: _cell(by_model[m]) if m in by_model else "–" for m in models}
        rows.append({"setting": title_of(setting), **cells})
    return pd.DataFrame(rows)


def wide_table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Table II as printed: a row per model and checkpoint; three tasks frozen, then fine-tuned."""
    columns, lines = table2_lines(frame)
    heads = [f"{MODES.get(mode, mode)} {task}" for mode, task in columns]
    rows = []
    for (model, checkpoint), cells in lines:
        shown = ["–" if row is None else _cell(row) for row in cells]
        rows.append({"model": model, "checkpoint": checkpoint, **dict(zip(heads, shown))})
    return pd.DataFrame(rows)


def table2_lines(
    frame: pd.DataFrame,
) -> tuple[list[tuple[str, str]], list[tuple[tuple[str, str], list[dict[Hashable, Any] | None]]]]:
    """Table II as printed.

    Returns:
        (mode, task) of each column, and the lines: model and title of the checkpoint, and the row of `frame` in each
        column, None where there is none. That of the constant guess is the same in every mode.
    """
    by = {(row["model"], row["checkpoint"], row["mode"], row["task"]): row for row in frame.to_dict("records")}
    columns = [key for key in dict.fromkeys(zip(frame["mode"], frame["task"])) if key[0] != CONSTANT]
    lines = []
    for model, checkpoint in dict.fromkeys(zip(frame["model"], frame["checkpoint"])):
        guess = model == GUESS[0]
        cells = [by.get((model, checkpoint, CONSTANT if guess else mode, task)) for mode, task in columns]
        lines.append(((model, "–" if guess else CHECKPOINT_TITLES.get(checkpoint, checkpoint)), cells))
    return columns, lines


def wide_rates(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The learning rates of Table II in its layout; None where none was chosen on validation clips."""
    if not searched(frame):
        return None
    columns, lines = table2_lines(frame[~frame["model"].isin([AVERAGE, GUESS[0]])])
    heads = [f"{MODES.get(mode, mode)} {task}" for mode, task in columns]
    rows = []
    for (model, checkpoint), cells in lines:
        shown = ["–" if row is None else _rate(*(row[name] for name in RATES)) for row in cells]
        rows.append({"model": model, "checkpoint": checkpoint, **dict(zip(heads, shown))})
    return pd.DataFrame(rows)


def searched(frame: pd.DataFrame) -> bool:
    """Whether the learning rate of a cell of Table II was chosen among several."""
    return RATES[1] in frame and bool((frame[RATES[1]].map(_number) > 1).any())


def _number(tried: Any) -> int:
    """How many rates were tried: 4 of ``4 (3 dropped early)``; 0 of an empty cell."""
    found = re.match(r"\d+", str(tried))
    return int(found[0]) if found else 0


def _rate(rate: Any, tried: Any) -> str:
    """``0.001 of 6``: the rate, and among how many it was chosen; a rate that was given stands alone."""
    text = f"{rate:g}" if isinstance(rate, float) else str(rate)
    several = f"{tried:g}" if isinstance(tried, float) else str(tried)
    return f"{text} of {several}" if _number(tried) > 1 else text


def wide_step2(frame: pd.DataFrame) -> pd.DataFrame:
    """Step 2's table for print: a row per model; a model without a score has its reason in place of it."""
    rows = []
    for row in frame.to_dict("records"):
        score = row["note"] if math.isnan(row["map"]) else percent(row["map"], math.nan, row["published"])
        rows.append({**{key: row[key] for key in ("model", "source")}, "mAP": score, "clips": row["clips"]})
    return pd.DataFrame(rows)


def wide_published(frame: pd.DataFrame) -> pd.DataFrame:
    """The published models' table for print: a row per model."""
    rows = []
    for row in frame.to_dict("records"):
        own = percent(row["psds1"], math.nan, row["published"])
        none = math.isnan(row["psds1_shared"])
        shared = "–" if none else percent(row["psds1_shared"], math.nan, row["published"])
        about = {"model": row["model"], "all clips": own, "clips": row["clips"]}
        rows.append({**about, "shared clips": shared, "clips shared": row["clips_shared"]})
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, *, title: str, notes: Iterable[str] = ()) -> str:
    """Markdown table of strings, with the title above and the notes below."""
    heads = [str(name) for name in frame.columns]
    lines = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join([*lines, *(line for note in notes for line in ("", note))]) + "\n"


def latex(frame: pd.DataFrame, *, title: str, label: str, notes: Iterable[str] = ()) -> str:
    """LaTeX table of strings (booktabs); the notes follow the caption."""
    special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "−": "$-$", "–": "--"}

    def clean(value: object) -> str:
        return "".join(special.get(char, char) for char in str(value))

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{clean(' '.join([title, *notes]))}}}"]
    lines += [rf"\label{{{label}}}", rf"\begin{{tabular}}{{l{'c' * (len(frame.columns) - 1)}}}", r"\toprule"]
    lines += [" & ".join(map(clean, frame.columns)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(clean, row)) + r" \\" for row in frame.itertuples(index=False)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


RATES_NOTE = "Learning rates were chosen on validation clips; the columns learning_rate and rates_tried have them."
OWN_SCORES = {True: "PSDS1 with and without the variance penalty", False: "onset F-measure at 50 ms"}
"""Score of a further task, by whether it has a value without the penalty."""


def notes_of(frame: pd.DataFrame, *, miniature: bool) -> list[str]:
    """Notes below a table of a run."""
    reading = "Each cell: mean ± sample standard deviation (published value, difference)."
    return [reading, *own_notes(frame), *([MINIATURE_NOTE] if miniature else [])]


def own_notes(frame: pd.DataFrame) -> list[str]:
    """What has to be said of the further values and rows of a table."""
    others = _average_note(frame)
    if "checkpoint" not in frame:
        return [*others, *([SUBSETS_NOTE] if "mean_unheard" in frame else [])]
    notes = TABLE2_NOTES if (frame["mode"] == CONSTANT).any() else TABLE2_NOTES[:1]
    column = f"mean_{WITHOUT_PENALTY}"  # absent before the first score of a run
    own = frame[~frame["task"].isin(TASKS)].reindex(columns=["task", column]).groupby("task", sort=False)[column]
    psds1 = own.apply(lambda values: values.notna().any())
    notes = [*notes, *([RATES_NOTE] if searched(frame) else [])]
    return [*others, *notes, *(f"{task}: {OWN_SCORES[bool(flag)]}, of this site." for task, flag in psds1.items())]


def _average_note(frame: pd.DataFrame) -> list[str]:
    """What the published averages and the published ensemble are of, where a run has other models than the paper."""
    ours = [name for name in dict.fromkeys(frame["model"]) if name not in (AVERAGE, ENSEMBLE, GUESS[0])]
    if set(ours) == set(MODELS):
        return []
    names = ", ".join(ours)
    about = {
        AVERAGE: f"Averages are of {names}, the published ones too.",
        ENSEMBLE: f"The published ensemble is of the paper's five models, ours of {names}: they do not compare.",
    }
    return [text for name, text in about.items() if frame.loc[frame["model"] == name, "published"].notna().any()]


def write_csv(path: str | Path, frame: pd.DataFrame, *, digits: int = 3) -> None:
    """Write `frame` as .csv with a fixed number of decimals."""
    write_text(path, frame.to_csv(index=False, float_format=f"%.{digits}f", lineterminator="\n"))


def _write_all(path: Path, frame: pd.DataFrame, wide: pd.DataFrame, *, title: str, notes: list[str]) -> None:
    write_csv(path, frame)
    rates = wide_rates(frame)
    more = "" if rates is None else "\n" + markdown(rates, title=rates_title(frame))
    write_text(path.with_suffix(".md"), markdown(wide, title=title, notes=notes) + more)
    write_text(path.with_suffix(".tex"), latex(wide, title=title, label=f"tab:{path.stem}", notes=notes))


RATES_TITLE = (
    "Learning rates of Table II. “0.001 of 6”: chosen among six rates on validation clips; several rates are those of "
    "several folds. What each rate was worth is beside the scores, in results/downstream/…/*.candidates.json."
)
HALVING_NOTE = "Rates that were dropped early were not trained to the end (successive halving)."


def rates_title(frame: pd.DataFrame) -> str:
    """Title of the table of learning rates of Table II."""
    dropped = frame[RATES[1]].astype(str).str.contains("dropped").any()
    return f"{RATES_TITLE} {HALVING_NOTE}" if dropped else RATES_TITLE


PUBLISHED_NOTE = (
    "Each cell: PSDS1 (the paper's value, difference). Shared clips are those that the authors evaluated on too."
)
TITLES = {
    "step2": "Mean average precision (percent) on AudioSet's evaluation clips after Step 2.",
    "published": "PSDS1 (percent, without variance penalty) of the published Step 3 checkpoints.",
    "table1": "PSDS1 (percent, without variance penalty) on the evaluation clips, per setting.",
    "teachers": "PSDS1 (percent, without variance penalty) of single teachers and of their ensemble.",
    "table2": "Downstream (percent): DESED PSDS1; DC16-T2 and MAESTRO onset F-measure at 50 ms.",
}


TABLES: dict[str, tuple[Callable[..., pd.DataFrame], Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "table1": (table1, wide_settings),
    "teachers": (teachers, wide_settings),
    "table2": (table2, wide_table2),
    "step2": (step2, wide_step2),
    "published": (published_models, wide_published),
}
"""Table → what builds it from scores, and what lays it out for people."""


def write_table(
    name: str,
    scores: Paths | Iterable[str | Path],
    csv: str | Path,
    *,
    miniature: bool = False,
    published_dir: str | Path = PUBLISHED,
) -> pd.DataFrame:
    """Write a table to `csv`, and as .md and .tex beside it.

    Args:
        name: "table1", "teachers", "table2", "step2" or "published".
        scores: .csv files of evaluations (by setting), of downstream jobs, or of single models.
        csv: the table.
        miniature: whether the data are the miniature's, which a note says.
        published_dir: folder of the paper's numbers.
    """
    build, layout = TABLES[name]
    frame = build(scores, published_dir=published_dir)
    if name == "step2":
        notes = ["Each cell: mAP (published value, difference)."] + ([MINIATURE_NOTE] if miniature else [])
    elif name == "published":
        notes = [PUBLISHED_NOTE, *dict.fromkeys(note for note in frame["note"] if note)]
    else:
        notes = notes_of(frame, miniature=miniature)
    _write_all(Path(csv), frame, layout(frame), title=TITLES[name], notes=notes)
    return frame


def write_partial(
    name: str,
    cells: Mapping[tuple[str, ...], tuple[Sequence[Mapping[str, float]], Sequence[str]]],
    csv: str | Path,
    *,
    miniature: bool = False,
    published_dir: str | Path = PUBLISHED,
) -> list[Path]:
    """Write what there is of table `name` beside its `csv`, as .partial.csv and .partial.md (see `partial`)."""
    frame = partial(name, cells, published_dir=published_dir)
    wide = wide_table2(frame) if name == "table2" else wide_settings(frame)
    reasons = dict.fromkeys(reason for _, missing in cells.values() for reason in missing)
    notes = notes_of(frame, miniature=miniature)
    if reasons:
        notes.append("\n".join(["Missing:", "", *(f"- {reason}" for reason in reasons)]))
    table, page = partial_files(csv)
    write_csv(table, frame)
    write_text(page, markdown(wide, title=f"Not complete. {TITLES[name]}", notes=notes))
    return [table, page]


def partial_files(csv: str | Path) -> tuple[Path, Path]:
    """Where what there is of a table is written: .partial.csv and .partial.md."""
    return Path(csv).with_suffix(".partial.csv"), Path(csv).with_suffix(".partial.md")


def write_significance(
    settings: Paths, csv: str | Path, *, alpha: float, comparisons: int, epsilon: float, seed: int = 0
) -> pd.DataFrame:
    """Write the significance tests to `csv`."""
    frame = significance(settings, alpha=alpha, comparisons=comparisons, epsilon=epsilon, seed=seed)
    write_csv(csv, frame, digits=4)
    return frame
