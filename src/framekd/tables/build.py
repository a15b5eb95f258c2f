"""The tables as data frames, in percent. A missing cell raises UserError; no cell is made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from framekd.config import UserError
from framekd.significance import compare
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    GUESS,
    MODES,
    PUBLISHED,
    RATES,
    TASKS,
    WITHOUT_PENALTY,
    Paths,
    all_scores,
    ensemble_score,
    in_order,
    published,
    read,
    scores,
    subsets,
    title_of,
    transfers,
)

KEYS = {
    "table1": ["setting", "model"],
    "teachers": ["setting", "model"],
    "table2": ["model", "checkpoint", "mode", "task"],
}
"""Table → the columns that name a cell."""
TOGETHER = (AVERAGE, ENSEMBLE, GUESS[0])


def _std(values: list[float]) -> float:
    """Sample standard deviation; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _row(values: list[float], reference: float | None) -> dict[str, float]:
    mean = sum(values) / len(values) if values else math.nan
    reference = math.nan if reference is None else reference
    return {
        "mean": mean,
        "std": _std(values),
        "n": len(values),
        "published": reference,
        "difference": mean - reference,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if not known or None in known else sum(known) / len(known)  # type: ignore[arg-type]


def _average(reference: Mapping[tuple, float], key: tuple, models: Iterable[str]) -> float | None:
    """The paper's mean over `models` of the cell `key`, whose model is `AVERAGE`; None if it lacks one of them."""
    return _mean(reference.get(tuple(model if part == AVERAGE else part for part in key)) for model in models)


def partial(
    name: str,
    cells: Mapping[tuple[str, ...], tuple[Sequence[Mapping[str, float]], Sequence[str]]],
    *,
    published_dir: str | Path = PUBLISHED,
) -> pd.DataFrame:
    """A table of which values are missing. Columns as the complete table, and `missing`.

    Args:
        name: "table1", "teachers" or "table2".
        cells: key of the cell (setting, model; or model, checkpoint, mode, task) → its values in percent, by name of
            the subset ("" is that of column mean), and a sentence for each value that is missing.
        published_dir: folder of the paper's numbers.
    Returns:
        A row per cell. A cell without values has no mean and n = 0.
    """
    keys = KEYS[name]
    reference = published(name, keys, directory=published_dir)
    models = [m for m in dict.fromkeys(key[keys.index("model")] for key in cells) if m not in TOGETHER]
    further = dict.fromkeys(name for values, _ in cells.values() for value in values for name in value if name)
    rows = []
    for key, (values, missing) in cells.items():
        paper = _average(reference, key, models) if AVERAGE in key else reference.get(key)
        row = {**dict(zip(keys, key)), **_row([value[""] for value in values], paper)}
        for name in further:
            other = _row([value[name] for value in values if name in value], None)
            row |= {f"mean_{name}": other["mean"], f"std_{name}": other["std"]}
        rows.append({**row, "missing": "; ".join(missing)})
    return pd.DataFrame(rows)


def _setting_rows(setting: str, by_model: dict[str, list[float]], reference: dict[tuple, float]) -> list[dict]:
    rows = []
    for model, values in by_model.items():
        paper = reference.get((setting, model))
        if model == AVERAGE:
            paper = _mean(reference.get((setting, name)) for name in by_model if name != AVERAGE)
        rows.append({"setting": setting, "model": model, **_row(values, paper)})
    return rows


def table1(settings: Paths, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Table I: PSDS1 of each setting and model.

    Columns setting, model, mean, std, n, published, difference; where the run was scored on further subsets of the
    evaluation clips, also mean_SUBSET and std_SUBSET.
    """
    reference = published("table1", KEYS["table1"], directory=published_dir)

    def rows(column: str) -> list[dict]:
        found = all_scores(settings, column)
        return [row for name in found for row in _setting_rows(name, found[name], reference)]

    return _with_subsets(settings, rows)


def teachers(settings: Paths, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Teachers of each setting by model, their average and, if it was evaluated, their ensemble. Columns as Table I."""
    reference = published("teachers", KEYS["teachers"], directory=published_dir)

    def rows(column: str) -> list[dict]:
        out: list[dict] = []
        for setting, found in all_scores(settings, column).items():
            out += _setting_rows(setting, found, reference)
            if together := ensemble_score(settings[setting], column):
                paper = reference.get((setting, ENSEMBLE))
                out.append({"setting": setting, "model": ENSEMBLE, **_row(together, paper)})
        return out

    return _with_subsets(settings, rows)


def _with_subsets(settings: Paths, rows: Callable[[str], list[dict]]) -> pd.DataFrame:
    """The table of column psds1, with mean and deviation of each further subset beside it."""
    frame = pd.DataFrame(rows("psds1"))
    for name in subsets(next(iter(settings.values()))):
        other = pd.DataFrame(rows(f"psds1_{name}"))
        frame[f"mean_{name}"], frame[f"std_{name}"] = other["mean"], other["std"]
    return frame


def significance(
    settings: Paths, *, alpha: float = 0.05, comparisons: int = 5, epsilon: float = 0.2, seed: int = 0
) -> pd.DataFrame:
    """Almost stochastic order of `proposed` over each other setting, per model (Sec. 3.4).

    Column `eps_min` is at the Bonferroni-corrected level, `eps_min_deepsig` at the weaker level of the deepsig package;
    `significant` is eps_min < epsilon.
    """
    if "proposed" not in settings:
        raise UserError("significance compares `proposed` with the other settings; write settings: {proposed: {}}")
    ours = scores(settings["proposed"])
    rows = []
    for setting in in_order(settings):
        if setting == "proposed":
            continue
        other = scores(settings[setting])
        for model in [name for name in ours if name != AVERAGE]:
            if model not in other:
                raise UserError(f"{setting}: no score of {model}, which proposed has")
            test = compare(
                ours[model], other[model], comparisons=comparisons, alpha=alpha, threshold=epsilon, seed=seed
            )
            rows.append(
                {
                    "comparison": f"proposed > {setting}",
                    "model": model,
                    "eps_min": test.eps_min,
                    "significant": test.significant,
                    "alpha": alpha,
                    "comparisons": comparisons,
                    "seeds": f"{test.n_a} vs {test.n_b}",
                    "eps_min_deepsig": test.eps_min_deepsig,
                    "note": test.note,
                }
            )
    return pd.DataFrame(rows)


def table2(paths: Iterable[str | Path], *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Table II. Columns model, checkpoint, mode, task, mean, std, n, published, difference; further those of
    :data:`WITHOUT_PENALTY`, mean_without_penalty and std_without_penalty: of DESED, empty for the other tasks; and
    `RATES` of each cell (those of several folds one after the other), where the jobs say them.

    After the models come their average, whose deviation is that of the runs' averages, and the constant guess (`GUESS`)
    if the checkpoint "untrained" was scored.

    Args:
        paths: .csv of the downstream jobs, with columns task, model, checkpoint, mode, seed, value (0..1).
        published_dir: folder of the paper's numbers.
    Raises:
        UserError: a combination of the models, checkpoints, modes and tasks that occur has no value.
    """
    keys = KEYS["table2"]
    reference = published("table2", keys, directory=published_dir)
    frame = transfers(paths)
    guess = frame["mode"] == GUESS[-1]
    tasks = list(dict.fromkeys((*TASKS, *frame["task"])))
    orders = [list(dict.fromkeys(frame.loc[~guess, "model"])), list(CHECKPOINT_TITLES), list(MODES), tasks]
    models, steps, modes, names = ([n for n in order if (frame[k] == n).any()] for k, order in zip(keys, orders))
    wanted = [(m, s, mode, t) for m in models for s, mode in cells_of(steps, modes) for t in names]
    wanted += [(*GUESS, task) for task in names if guess.any()]
    found, rates = {}, {}
    for key in wanted:
        part = frame[(frame[keys] == pd.Series(key, index=keys)).all(axis=1)].set_index("seed")
        if part.empty or part["value"].isna().any():
            raise UserError(f"downstream: no value for {' '.join(key)}; run that job")
        found[key] = part[["value", WITHOUT_PENALTY]]
        rates[key] = {name: ", ".join(dict.fromkeys(part[name].dropna())) for name in RATES}
    for s, mode in cells_of(steps, modes):
        for task in names:
            runs = pd.concat([found[model, s, mode, task] for model in models]).groupby(level="seed", sort=False)
            if (runs.size() != len(models)).any():
                raise UserError(f"downstream: the models have different seeds or folds of {task}; run its jobs again")
            found[AVERAGE, s, mode, task] = runs.mean()
    order = [*models, AVERAGE, GUESS[0]]
    any_rate = frame[RATES[0]].notna().any()
    rows = []
    for key in sorted(found, key=lambda key: order.index(key[0])):
        further = _row(found[key][WITHOUT_PENALTY].tolist(), None)
        paper = _average(reference, key, models) if AVERAGE in key else reference.get(key)
        row = _row(found[key]["value"].tolist(), paper)
        row |= {f"{name}_{WITHOUT_PENALTY}": further[name] for name in ("mean", "std")}
        rows.append({**dict(zip(keys, key)), **row, **(rates.get(key, {}) if any_rate else {})})
    return pd.DataFrame(rows)


def cells_of(steps: Iterable[str], modes: Iterable[str]) -> list[tuple[str, str]]:
    """(checkpoint, mode) of Table II: every mode of every checkpoint, but "untrained" is frozen only."""
    modes = list(modes)
    return [(step, mode) for step in steps for mode in modes if step != "untrained" or mode == "frozen"]


def step2(paths: Iterable[str | Path], *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """mAP after Step 2 (NaN without a clip head).

    Columns model, source, map, published, difference, clips, classes, note.

    Args:
        paths: .csv of each model, with columns model, source, map (0..1), clips, classes, note.
        published_dir: folder of the paper's numbers.
    """
    reference = published("step2", ["model"], directory=published_dir)
    columns = ("model", "source", "map", "clips", "classes", "note")
    frame = pd.concat([read(path, columns) for path in paths], ignore_index=True)
    frame["map"] = frame["map"].astype(float) * 100
    frame["published"] = [reference.get((model,), math.nan) for model in frame["model"]]
    frame["difference"] = frame["map"] - frame["published"]
    frame["note"] = frame["note"].astype(object).where(frame["note"].notna(), "")
    return frame[["model", "source", "map", "published", "difference", "clips", "classes", "note"]]


def published_models(paths: Iterable[str | Path], *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """PSDS1 of the published Step 3 checkpoints, on all evaluation clips and on those of the authors' list.

    Columns model, psds1, published, difference, clips, psds1_shared, difference_shared, clips_shared, note.

    Args:
        paths: .csv of each model, with columns model, psds1 (0..1), clips, psds1_shared, clips_shared, note.
        published_dir: folder of the paper's numbers.
    """
    reference = published("table1", KEYS["table1"], directory=published_dir)
    columns = ("model", "psds1", "clips", "psds1_shared", "clips_shared", "note")
    frame = pd.concat([read(path, columns) for path in paths], ignore_index=True)
    frame["published"] = [reference.get(("proposed", model), math.nan) for model in frame["model"]]
    for end in ("", "_shared"):
        frame[f"psds1{end}"] = frame[f"psds1{end}"].astype(float) * 100
        frame[f"difference{end}"] = frame[f"psds1{end}"] - frame["published"]
    frame["note"] = frame["note"].astype(object).where(frame["note"].notna(), "")
    first = ["model", "psds1", "published", "difference", "clips"]
    return frame[[*first, "psds1_shared", "difference_shared", "clips_shared", "note"]]


ORDERINGS = {"without_kd": "KD", "without_rnn": "RNN", "without_step2": "Step 2", "li_et_al": "all three steps"}


def orderings(students: pd.DataFrame, single: pd.DataFrame, downstream: pd.DataFrame | None = None) -> pd.DataFrame:
    """The paper's orderings in this run and in the paper, from the frames of `table1`, `teachers` and `table2`.

    Columns ordering, stage, model, gap, spread, published_gap, verdict. `gap` is in percentage points; `spread` is the
    root of the sum of the two sample variances. `verdict` is "shown" if gap > spread, "reversed" if gap < -spread,
    else "within spread".
    """
    rows: list[dict] = []
    for stage, frame in (("Table I", students), ("teachers", single)):
        cells = {(row["setting"], row["model"]): row for row in frame.to_dict("records")}
        for setting, what in ORDERINGS.items():
            for model in dict.fromkeys(frame["model"]):
                ours, other = cells.get(("proposed", model)), cells.get((setting, model))
                if ours and other and model != ENSEMBLE:
                    head = {"ordering": f"{what} over none", "stage": stage, "model": model}
                    rows.append({**head, **_gap(ours, other)})
    cells = {(row["setting"], row["model"]): row for row in single.to_dict("records")}
    for setting in dict.fromkeys(single["setting"]):
        if (setting, ENSEMBLE) in cells:
            head = {"ordering": "ensemble over average teacher", "stage": f"teachers, {title_of(setting)}"}
            rows.append({**head, "model": AVERAGE, **_gap(cells[setting, ENSEMBLE], cells[setting, AVERAGE])})
    return pd.DataFrame(rows if downstream is None else rows + _downstream_orderings(downstream))


def _downstream_orderings(frame: pd.DataFrame) -> list[dict]:
    """Frozen heads on the full checkpoint against those on Step 1, per task; of DESED also without the penalty."""
    keys = KEYS["table2"]
    cells = {tuple(row[key] for key in keys): row for row in frame.to_dict("records")}
    rows = []
    for task, name in ((task, name) for task in TASKS for name in ("", WITHOUT_PENALTY)):
        for model in dict.fromkeys(frame["model"]):
            full, step1 = (cells.get((model, step, "frozen", task)) for step in ("full", "step1"))
            if full is None or step1 is None:
                continue
            if name:  # the paper has only the value with the penalty
                full, step1 = (
                    {"mean": cell[f"mean_{name}"], "std": cell[f"std_{name}"], "published": math.nan}
                    for cell in (full, step1)
                )
            if not math.isnan(full["mean"]):
                stage = f"frozen {task} {name.replace('_', ' ')}".strip()
                rows.append({"ordering": "full over Step 1", "stage": stage, "model": model, **_gap(full, step1)})
    return rows


def gap_of(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float]:
    """By how much cell `a` is above `b`, and its spread: the root of the sum of the two sample variances."""
    spread = math.sqrt(sum(cell["std"] ** 2 for cell in (a, b) if not math.isnan(cell["std"])))
    return a["mean"] - b["mean"], spread


def _gap(a: dict, b: dict) -> dict:
    gap, spread = gap_of(a, b)
    verdict = "shown" if gap > spread else "reversed" if gap < -spread else "within spread"
    return {"gap": gap, "spread": spread, "published_gap": a["published"] - b["published"], "verdict": verdict}
