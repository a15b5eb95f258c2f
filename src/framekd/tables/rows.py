"""What the tables are made of: rows of the evaluations, the paper's numbers, names and order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from framekd.config import Config, UserError

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
TASKS = ("DESED", "DC16-T2", "MAESTRO")
MODES = {"frozen": "frozen", "finetune": "fine-tuned"}
CHECKPOINT_TITLES = {"step1": "Step 1", "step2": "Step 2", "full": "full"}

Paths = Mapping[str, str | Path]
"""Setting → the .csv of its evaluation."""


def title_of(setting: str) -> str:
    """How a setting of Table I is called in print."""
    return SETTING_TITLES.get(setting, setting.replace("_", " "))


def in_order(settings: Iterable[str]) -> list[str]:
    """Settings in the order of the paper's Table I, the user's own ones last."""
    order = list(SETTING_TITLES)
    return sorted(settings, key=lambda name: order.index(name) if name in order else len(order))


def evaluations(config: Config, results_dir: str | Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Where a run with `config` leaves the scores of Table I's settings, and those of its teachers."""
    folder = Path(results_dir) / "evaluation"
    table: dict[str, Path] = {}
    teachers: dict[str, Path] = {}
    for name in in_order(config.settings):
        owner = config.teachers_of(name)
        if owner is not None:
            teachers[owner] = folder / "teachers" / f"{owner}.csv"
        student = config.setting(name).student is not None
        table[name] = folder / "students" / f"{name}.csv" if student else folder / "teachers" / f"{owner}.csv"
    return table, {name: teachers[name] for name in in_order(teachers)}


def read(path: str | Path, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV that must have `columns`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not there; it is written by an earlier stage, run that first")
    frame = pd.read_csv(path, dtype={"seed": "string"})
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: expected columns {', '.join(columns)}, but {', '.join(missing)} is missing")
    return frame


def scores(path: str | Path) -> dict[str, list[float]]:
    """PSDS1 in percent per model, in the order of the seeds; `average` is the mean over models, seed by seed.

    Rows of an ensemble are left out. Refused: an empty score, and models with different seeds.
    """
    frame = read(path, ("model", "seed", "psds1"))
    frame = frame[frame["model"] != ENSEMBLE]
    if frame.empty:
        raise UserError(f"{path}: has no row of any model; the evaluation has to be run again")
    if frame["psds1"].isna().any():
        raise UserError(f"{path}: {frame.loc[frame['psds1'].isna(), 'model'].iloc[0]} has an empty score")
    models = list(dict.fromkeys(frame["model"]))
    out: dict[str, list[float]] = {}
    seeds = set()
    for model in models:
        rows = frame[frame["model"] == model].sort_values("seed", kind="stable")
        out[model] = (rows["psds1"].astype(float) * 100).tolist()
        seeds.add(tuple(rows["seed"]))
    if len(seeds) > 1:
        raise UserError(f"{path}: the models have different seeds; each model needs a row per seed")
    out[AVERAGE] = [sum(values) / len(models) for values in zip(*(out[model] for model in models))]
    return out


def ensemble_score(path: str | Path) -> list[float]:
    """PSDS1 in percent of the ensemble of evaluated teachers: a row among theirs, or in ensembles/ beside."""
    frame = read(path, ("model", "psds1"))
    rows = frame[frame["model"] == ENSEMBLE]
    beside = Path(path).parent.parent / "ensembles" / Path(path).name
    if rows.empty and beside.is_file():
        rows = read(beside, ("model", "psds1"))
    if rows["psds1"].isna().any():
        raise UserError(f"{path}: the ensemble has an empty score")
    return (rows["psds1"].astype(float) * 100).tolist()


def all_scores(paths: Paths) -> dict[str, dict[str, list[float]]]:
    """Scores of every setting; refused unless all have the same models."""
    out = {name: scores(paths[name]) for name in in_order(paths)}
    first = next(iter(out.values()))
    for name, found in out.items():
        for model in (first.keys() | found.keys()) - (first.keys() & found.keys()):
            raise UserError(f"{paths[name]}: no score of {model} in each setting; every setting needs every model")
    return out


def published(name: str, keys: list[str], *, directory: str | Path = PUBLISHED) -> dict[tuple, float]:
    """The paper's numbers of table `name`, by `keys`."""
    frame = read(Path(directory) / f"{name}.csv", (*keys, "published"))
    return {tuple(row[key] for key in keys): float(row["published"]) for row in frame.to_dict("records")}
