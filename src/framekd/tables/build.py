"""The tables as data frames, in percent. A missing cell raises UserError; no cell is made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from framekd.config import UserError
from framekd.significance import compare
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    MODES,
    PUBLISHED,
    TASKS,
    Paths,
    all_scores,
    ensemble_score,
    in_order,
    published,
    read,
    scores,
    subsets,
    title_of,
)

KEYS = {
    "table1": ["setting", "model"],
    "teachers": ["setting", "model"],
    "table2": ["model", "checkpoint", "mode", "task"],
}
"""Table → the columns that name a cell."""
TOGETHER = (AVERAGE, ENSEMBLE)


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
    further = dict.fromkeys(name for values, _ in cells.values() for value in values for name in value if name)
    rows = []
    for key, (values, missing) in cells.items():
        paper = reference.get(key)
        if key[-1] == AVERAGE:
            paper = _mean(reference.get(other) for other in cells if other[0] == key[0] and other[1] not in TOGETHER)
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
    """Table II. Columns model, checkpoint, mode, task, mean, std, n, published, difference.

    Args:
        paths: .csv of the downstream jobs, with columns task, model, checkpoint, mode, seed, value (0..1).
        published_dir: folder of the paper's numbers.
    Raises:
        UserError: a combination of the models, checkpoints, modes and tasks that occur has no value.
    """
    keys = KEYS["table2"]
    reference = published("table2", keys, directory=published_dir)
    frame = pd.concat([read(path, (*keys, "seed", "value")) for path in paths], ignore_index=True)
    orders = [list(dict.fromkeys(frame["model"])), list(CHECKPOINT_TITLES), list(MODES), list(TASKS)]
    used = [[name for name in order if (frame[key] == name).any()] for key, order in zip(keys, orders)]
    rows = []
    for key in ((a, b, c, d) for a in used[0] for b in used[1] for c in used[2] for d in used[3]):
        part = frame[(frame[keys] == pd.Series(key, index=keys)).all(axis=1)]
        values = (part["value"].astype(float) * 100).tolist()
        if not values or any(math.isnan(value) for value in values):
            raise UserError(f"downstream: no value for {' '.join(key)}; run that job")
        rows.append({**dict(zip(keys, key)), **_row(values, reference.get(key))})
    return pd.DataFrame(rows)


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


def orderings(students: pd.DataFrame, single: pd.DataFrame) -> pd.DataFrame:
    """The paper's orderings in this run and in the paper, from the frames of `table1` and `teachers`.

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
    return pd.DataFrame(rows)


def _gap(a: dict, b: dict) -> dict:
    gap = a["mean"] - b["mean"]
    spread = math.sqrt(sum(cell["std"] ** 2 for cell in (a, b) if not math.isnan(cell["std"])))
    verdict = "shown" if gap > spread else "reversed" if gap < -spread else "within spread"
    return {"gap": gap, "spread": spread, "published_gap": a["published"] - b["published"], "verdict": verdict}
