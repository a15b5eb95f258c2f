"""Inputs of the tables: rows of the evaluations, the paper's numbers, titles and order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from framekd.config import PAPER_TASKS, UserError

AVERAGE = "average"
ENSEMBLE = "ensemble"
PUBLISHED = Path("config/published")
SETTING_TITLES = {
    "li_et_al": "Li et al.",
    "proposed": "proposed",
    "without_kd": "without KD",
    "without_rnn": "without RNN",
    "without_step2": "without Step 2",
}
TASKS = PAPER_TASKS
MODES = {"frozen": "frozen", "finetune": "fine-tuned"}
CHECKPOINT_TITLES = {"untrained": "untrained", "step1": "Step 1", "step2": "Step 2", "full": "full"}
CONSTANT = "constant"
"""Mode of a constant guess, which needs no model."""
GUESS = ("constant guess", "none", CONSTANT)
"""Model, checkpoint and mode of the constant guess in Table II."""
RATES = ("learning_rate", "rates_tried")
"""Columns of the downstream jobs: the rate of a run, and how many were tried on validation clips (1: it was given)."""
WITHOUT_PENALTY = "without_penalty"
"""Of DESED: PSDS1 without the variance penalty; .csv of the downstream jobs have it as psds1_without_penalty."""

Files = str | Path | Sequence[str | Path]
"""One .csv, or several whose rows belong together."""
Paths = Mapping[str, Files]
"""Setting → .csv of its trainings' scores."""


def title_of(setting: str) -> str:
    """Title of a setting of Table I in print."""
    return SETTING_TITLES.get(setting, setting.replace("_", " "))


def in_order(settings: Iterable[str]) -> list[str]:
    """Settings in the order of the paper's Table I; further settings last."""
    order = list(SETTING_TITLES)
    return sorted(settings, key=lambda name: order.index(name) if name in order else len(order))


def read(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV. Raises FileNotFoundError if it is missing, UserError if it lacks one of `columns`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: missing; run the stage that writes it first")
    frame = pd.read_csv(path, dtype=dict.fromkeys(("seed", *RATES), "string"))
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: expected columns {', '.join(columns)}, but {', '.join(missing)} is missing")
    return frame


def subsets(paths: Files) -> list[str]:
    """Further subsets of the evaluation clips that a run was scored on, beside the one of column psds1."""
    frame, _ = _read_all(paths, ("psds1",))
    names = (name.removeprefix("psds1_") for name in frame.columns if name.startswith("psds1_"))
    return [name for name in names if name != "variance_penalty"]


def _read_all(paths: Files, columns: Iterable[str]) -> tuple[pd.DataFrame, str | Path]:
    """The rows of all files, and the name of the first, for messages."""
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    return pd.concat([read(path, tuple(columns)) for path in files], ignore_index=True), files[0]


def scores(paths: Files, column: str = "psds1") -> dict[str, list[float]]:
    """PSDS1 (of `column`) in percent per model, in the order of the seeds.

    `average` is the mean over models, one per seed. Rows of an ensemble are left out.

    Raises:
        UserError: a score is empty, or the models have different seeds.
    """
    frame, path = _read_all(paths, ("model", "seed", column))
    frame = frame[frame["model"] != ENSEMBLE]
    if frame.empty:
        raise UserError(f"{path}: has no row of any model; run the evaluation again")
    if frame[column].isna().any():
        raise UserError(f"{path}: {frame.loc[frame[column].isna(), 'model'].iloc[0]} has an empty score")
    models = list(dict.fromkeys(frame["model"]))
    out: dict[str, list[float]] = {}
    seeds = set()
    for model in models:
        rows = frame[frame["model"] == model].sort_values("seed", kind="stable")
        out[model] = (rows[column].astype(float) * 100).tolist()
        seeds.add(tuple(rows["seed"]))
    if len(seeds) > 1:
        raise UserError(f"{path}: the models have different seeds; each model needs a row per seed")
    out[AVERAGE] = [sum(values) / len(models) for values in zip(*(out[model] for model in models))]
    return out


def ensemble_score(paths: Files, column: str = "psds1") -> list[float]:
    """PSDS1 (of `column`) in percent of the ensemble among the evaluated teachers; empty if it was not evaluated."""
    frame, path = _read_all(paths, ("model", column))
    rows = frame[frame["model"] == ENSEMBLE]
    if rows[column].isna().any():
        raise UserError(f"{path}: the ensemble has an empty score")
    return (rows[column].astype(float) * 100).tolist()


def transfers(paths: Iterable[str | Path]) -> pd.DataFrame:
    """The rows of downstream jobs, in percent: task, model, checkpoint, mode, seed, value, without_penalty, `RATES`.

    `without_penalty` is NaN for the tasks that have no such score. Of the constant guess only the first model's rows
    are kept, and named as in `GUESS`: they are the same for every model.
    """
    keys = ("task", "model", "checkpoint", "mode", "seed")
    frame, _ = _read_all(list(paths), (*keys, "value"))
    frame = frame.reindex(columns=[*keys, "value", f"psds1_{WITHOUT_PENALTY}", *RATES])
    frame = frame.rename(columns={f"psds1_{WITHOUT_PENALTY}": WITHOUT_PENALTY})
    for name in ("value", WITHOUT_PENALTY):
        frame[name] = frame[name].astype(float) * 100
    guess = frame["mode"] == CONSTANT
    first = next(iter(frame.loc[guess, "model"]), None)
    frame = frame[~guess | (frame["model"] == first)].copy()
    frame.loc[frame["mode"] == CONSTANT, ["model", "checkpoint"]] = GUESS[:2]
    return frame


def all_scores(paths: Paths, column: str = "psds1") -> dict[str, dict[str, list[float]]]:
    """Scores of every setting. Raises UserError unless all have the same models."""
    out = {name: scores(paths[name], column) for name in in_order(paths)}
    first = next(iter(out.values()))
    for name, found in out.items():
        for model in (first.keys() | found.keys()) - (first.keys() & found.keys()):
            raise UserError(f"{name}: no score of {model} in every setting; every setting needs every model")
    return out


def published(name: str, keys: list[str], *, directory: str | Path = PUBLISHED) -> dict[tuple, float]:
    """The paper's numbers of table `name`: {values of `keys`: number}."""
    frame = read(Path(directory) / f"{name}.csv", (*keys, "published"))
    return {tuple(row[key] for key in keys): float(row["published"]) for row in frame.to_dict("records")}
