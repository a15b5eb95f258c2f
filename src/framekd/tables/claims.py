"""Which of the paper's numbers and claims a table of ours shows, and by how much."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from framekd.config import UserError
from framekd.tables.build import gap_of, orderings
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    GUESS,
    MODES,
    PUBLISHED,
    TASKS,
    published,
    title_of,
)

SPREADS = 2  # standard deviations of the seeds within which a number counts as reproduced
KEYS = {"setting": ["setting", "model"], "checkpoint": ["model", "checkpoint", "mode", "task"]}
KD_GAIN = 5.0  # percent that knowledge distillation gains at least for every model (Sec. 4)
WORST = 3
Rows = dict[tuple[str, ...], dict[str, Any]]
"""Cells of a table by the columns that name them."""


@dataclass(frozen=True)
class Cell:
    """A number of the paper and ours, in percent. `std` is that of the seeds; NaN of a single value."""

    name: str
    mean: float
    std: float
    published: float

    @property
    def difference(self) -> float:
        """Ours minus the paper's, in points."""
        return self.mean - self.published

    @property
    def place(self) -> str:
        """ "within", "above" or "below" the spread of the seeds; "single" where there is no spread."""
        if math.isnan(self.std):
            return "single"
        return "within" if abs(self.difference) <= SPREADS * self.std else "above" if self.difference > 0 else "below"


@dataclass(frozen=True)
class Check:
    """One comparison of a claim: it holds where `value` is more than `needed` (or, with `at_least`, equal to it).

    `published` is NaN where the paper has no such numbers.
    """

    cells: str
    value: float
    needed: float
    unit: str
    published: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether our numbers show it."""
        return self.value > self.needed or (self.at_least and self.value == self.needed)

    @property
    def margin(self) -> float:
        """By how much it holds; negative where it does not."""
        return self.value - self.needed


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its comparisons. `missing` names the cells that the table lacks."""

    name: str
    checks: list[Check]
    missing: list[str]

    @property
    def holds(self) -> bool | None:
        """Whether every comparison holds; None where a cell is missing and the others hold."""
        if not all(check.holds for check in self.checks):
            return False
        return None if self.missing or not self.checks else True


@dataclass(frozen=True)
class Comparison:
    """A table of ours against the paper."""

    cells: list[Cell]
    missing: list[str]
    claims: list[Claim]


def compare_table(path: str | Path, *, published_dir: str | Path = PUBLISHED) -> Comparison:
    """Compare table1.csv, teachers.csv or table2.csv of a run with the paper's numbers and claims.

    Raises:
        UserError: the file is none of these tables.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table; make it with `snakemake {path}`")
    frame = pd.read_csv(path)
    kind = next((kind for kind in KEYS if kind in frame.columns), None)
    lacks = [name for name in ("mean", "std", "published") if name not in frame.columns]
    if kind is None or lacks:
        raise UserError(f"{path}: expected table1.csv, teachers.csv or table2.csv of a run")
    keys = KEYS[kind]
    teachers = kind == "setting" and (frame["model"] == ENSEMBLE).any()
    name = "table2" if kind == "checkpoint" else "teachers" if teachers or Path(path).stem == "teachers" else "table1"
    paper = published(name, keys, directory=published_dir)
    rows = {tuple(row[key] for key in keys): row for row in frame.to_dict("records") if not math.isnan(row["mean"])}
    cells = [
        Cell(" ".join(key), rows[key]["mean"], rows[key]["std"], value) for key, value in paper.items() if key in rows
    ]
    missing = [" ".join(key) for key in paper if key not in rows]
    claims = {"table1": _table1, "teachers": _teachers, "table2": _table2}[name]
    return Comparison(cells, missing, claims(frame[frame["mean"].notna()], paper))


# Claims ---------------------------------------------------------------------------------------------------------------


def _table1(frame: pd.DataFrame, paper: dict[tuple, float]) -> list[Claim]:
    models = list(dict.fromkeys(model for _, model in paper))
    gaps = {(row["ordering"], row["model"]): row for row in orderings(frame, frame.iloc[:0]).to_dict("records")}
    means = {(row["setting"], row["model"]): row["mean"] for row in frame.to_dict("records")}

    def over(what: str, ordering: str, setting: str, chosen: list[str]) -> Claim:
        """`proposed` is better than `setting` by more than the spread of the seeds."""
        checks, missing = [], []
        for model in chosen:
            row = gaps.get((f"{ordering} over none", model))
            if row is None:
                missing += [f"{name} {model}" for name in ("proposed", setting) if (name, model) not in means]
            else:
                used = (
                    f"{model}: proposed {means['proposed', model]:.1f}, {title_of(setting)} {means[setting, model]:.1f}"
                )
                wanted = paper["proposed", model] - paper[setting, model]
                checks.append(Check(used, row["gap"], row["spread"], "points", wanted))
        return Claim(what, checks, missing)

    def relative(model: str) -> float:
        ours, without = means["proposed", model], means["without_kd", model]
        return 100 * (ours / without - 1) if without > 0 else math.inf if ours > 0 else 0.0

    kd = over("", "KD", "without_kd", models)
    gains = []
    for check in kd.checks:
        model = check.cells.split(":")[0]
        wanted = 100 * (paper["proposed", model] / paper["without_kd", model] - 1)
        gains.append(Check(check.cells, relative(model), KD_GAIN, "%", wanted, at_least=True))
    return [
        over("better than Li et al., every model", "all three steps", "li_et_al", models),
        Claim(f"KD gains at least {KD_GAIN:g} %, every model", gains, kd.missing),
        over("an RNN in the teachers helps BEATs and M2D", "RNN", "without_rnn", ["BEATs", "M2D"]),
        over("Step 2 helps BEATs", "Step 2", "without_step2", ["BEATs"]),
    ]


def _teachers(frame: pd.DataFrame, paper: dict[tuple, float]) -> list[Claim]:
    means = {(row["setting"], row["model"]): row["mean"] for row in frame.to_dict("records")}
    out = []
    for setting in dict.fromkeys(setting for setting, _ in paper):
        members = [model for s, model in paper if s == setting and model != ENSEMBLE]
        missing = [f"{setting} {model}" for model in [*members, ENSEMBLE] if (setting, model) not in means]
        checks = []
        if (setting, ENSEMBLE) in means:
            for model in members:
                if (setting, model) in means:
                    ours, other = means[setting, ENSEMBLE], means[setting, model]
                    wanted = paper[setting, ENSEMBLE] - paper[setting, model]
                    checks.append(Check(f"ensemble {ours:.1f}, {model} {other:.1f}", ours - other, 0, "points", wanted))
        out.append(Claim(f"the ensemble is better than each of its members, {title_of(setting)}", checks, missing))
    return out


def _table2(frame: pd.DataFrame, paper: dict[tuple, float]) -> list[Claim]:
    """What the paper's own numbers show, in the mean of the models and (in a claim of its own) in every model.

    A checkpoint is better where the gap is larger than its spread over seeds or folds.
    """
    keys = KEYS["checkpoint"]
    rows: Rows = {tuple(row[key] for key in keys): row for row in frame.to_dict("records")}
    means = {key: row["mean"] for key, row in rows.items()}
    models = list(dict.fromkeys(key[0] for key in paper))
    out = []
    for better, worse in (("full", "step1"), ("full", "step2"), ("step2", "step1")):
        titles = (CHECKPOINT_TITLES[better], CHECKPOINT_TITLES[worse])
        for mode, task in itertools.product(MODES, TASKS):
            wanted = {m: paper[m, better, mode, task] - paper[m, worse, mode, task] for m in models}
            mean = sum(wanted.values()) / len(models)
            used = [(model, step, mode, task) for model in models for step in (better, worse)]
            missing = [" ".join(key) for key in used if key not in means]
            both = [m for m in models if all((m, step, mode, task) in means for step in (better, worse))]
            name = f"{titles[0]} better than {titles[1]}, {task} {MODES[mode]}"
            alone = []
            for model in both:
                ours, other = (rows[model, step, mode, task] for step in (better, worse))
                text = f"{model}: {titles[0]} {ours['mean']:.1f}, {titles[1]} {other['mean']:.1f}"
                alone.append(Check(text, *gap_of(ours, other), "points", wanted[model]))
            if mean > 0:
                checks = []
                if both:
                    ours, other = (_together(rows, both, step, mode, task) for step in (better, worse))
                    cells = (
                        f"mean of {len(both)} models: {titles[0]} {ours['mean']:.1f}, {titles[1]} {other['mean']:.1f}"
                    )
                    cells += f"; better in {sum(check.value > 0 for check in alone)}"
                    checks.append(Check(cells, *gap_of(ours, other), "points", mean))
                out.append(Claim(name, checks, missing))
            if min(wanted.values()) > 0:
                out.append(Claim(f"{name}, every model", alone, missing))
    return out + _over_baselines(means)


def _together(rows: Rows, models: list[str], step: str, mode: str, task: str) -> dict[str, float]:
    """Mean over `models`, and its deviation over seeds or folds.

    The deviation is that of the table's average where that is of the same models; otherwise the models' own deviations
    count as independent.
    """
    cells = [rows[model, step, mode, task] for model in models]
    there = {key[0] for key in rows if key[1:] == (step, mode, task)}
    average = rows.get((AVERAGE, step, mode, task))
    if average is not None and there - {AVERAGE} == set(models):
        std = average["std"]
    else:
        std = math.sqrt(sum(cell["std"] ** 2 for cell in cells if not math.isnan(cell["std"]))) / len(cells)
    return {"mean": sum(cell["mean"] for cell in cells) / len(cells), "std": std}


def _over_baselines(means: dict[tuple, float]) -> list[Claim]:
    """Where the table has baselines: the mean over models of every checkpoint, in every mode, is above each of them."""
    models = list(dict.fromkeys(key[0] for key in means if key[1] == "untrained" and key[0] != AVERAGE))
    cells = dict.fromkeys(key[1:] for key in means if key[1] in CHECKPOINT_TITLES and key[1] != "untrained")
    baselines = {
        "untrained": lambda task: _mean(means, models, "untrained", "frozen", task),
        "constant guess": lambda task: means.get((*GUESS, task), math.nan),
    }
    out = []
    for task in TASKS if models else ():
        trained = {cell: _mean(means, models, *cell) for cell in cells if cell[-1] == task}
        for name, value in baselines.items():
            checks = []
            if trained and not math.isnan(value(task)):
                (step, mode, _), lowest = min(trained.items(), key=lambda item: item[1])
                text = f"lowest mean of {len(models)} models: {CHECKPOINT_TITLES[step]} {MODES[mode]} {lowest:.1f}, "
                checks = [Check(f"{text}{name} {value(task):.1f}", lowest - value(task), 0, "points", math.nan)]
            out.append(Claim(f"every trained checkpoint better than {name}, {task}", checks, []))
    return out


def _mean(cells: dict[tuple, float], models: list[str], step: str, mode: str, task: str) -> float:
    values = [cells.get((model, step, mode, task), math.nan) for model in models]
    return sum(values) / len(values) if values else math.nan


# Print ----------------------------------------------------------------------------------------------------------------


def _cell(cell: Cell) -> str:
    return f"{cell.name} {cell.mean:.1f} (paper {cell.published:.1f}, {cell.difference:+.1f})"


def comparison_text(found: Comparison) -> str:
    """A comparison as lines for people."""
    places = {place: [c for c in found.cells if c.place == place] for place in ("within", "above", "below", "single")}
    lines = [
        f"numbers: {len(found.cells)} of the paper's {len(found.cells) + len(found.missing)} are there; "
        f"{len(places['within'])} within {SPREADS} standard deviations of the seeds, {len(places['above'])} above, "
        f"{len(places['below'])} below"
        + (f", {len(places['single'])} single values without a spread" if places["single"] else "")
    ]
    worst = sorted(found.cells, key=lambda cell: -abs(cell.difference))[:WORST]
    if worst:
        lines.append("  furthest: " + "; ".join(map(_cell, worst)))
    if found.missing:
        lines.append("  missing: " + ", ".join(found.missing))
    states = [claim.holds for claim in found.claims]
    lines.append(f"claims: {states.count(True)} hold, {states.count(False)} do not, {states.count(None)} are open")
    for claim in found.claims:
        word = {True: "holds", False: "does not hold", None: "open"}[claim.holds]
        lines.append(f"  {claim.name}: {word}")
        for check in claim.checks:
            sign = "yes" if check.holds else "no"
            needed = f", needs {check.needed:.1f}" if check.needed else ""
            paper = "" if math.isnan(check.published) else f" (paper {check.published:+.1f})"
            lines.append(f"    {sign}: {check.cells}; {check.value:+.1f} {check.unit}{needed}{paper}")
        if claim.missing:
            lines.append("    missing: " + ", ".join(claim.missing))
    return "\n".join(lines)
