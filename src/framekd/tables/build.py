"""The tables as data frames, in percent. A gap is refused: a table never has an invented cell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from framekd.config import Config, UserError
from framekd.tables.rows import (
    AVERAGE,
    ENSEMBLE,
    PUBLISHED,
    TASKS,
    evaluation,
    ordered_settings,
    published,
    read,
    scored,
    teacher_settings,
    title_of,
)


def _std(values: list[float]) -> float:
    """Sample standard deviation; nothing for a single value."""
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _row(values: list[float], reference: float | None) -> dict[str, float]:
    mean = sum(values) / len(values)
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


def by_model(scores: pd.DataFrame, models: list[str], *, source: str) -> dict[str, list[float]]:
    """Scores per model in the order of the seeds, and of the models' average, seed by seed."""
    out: dict[str, list[float]] = {}
    seeds: dict[str, list[str]] = {}
    for model in models:
        rows = scores[scores["model"] == model].sort_values("seed", kind="stable")
        if rows.empty:
            raise UserError(f"{source}: no score of {model}; the evaluation has to be run for every model")
        if rows["psds1"].isna().any():
            raise UserError(f"{source}: a score of {model} is empty or not a number")
        out[model] = rows["psds1"].astype(float).tolist()
        seeds[model] = rows["seed"].tolist()
    if len({tuple(found) for found in seeds.values()}) > 1:
        raise UserError(f"{source}: the models have different seeds: {seeds}")
    out[AVERAGE] = [sum(values) / len(models) for values in zip(*(out[model] for model in models))]
    return out


def _setting_rows(setting: str, scores: dict[str, list[float]], reference: dict[tuple, float]) -> list[dict]:
    rows = []
    for model, values in scores.items():
        if model == AVERAGE:
            paper = _mean(reference.get((setting, name)) for name in scores if name != AVERAGE)
        else:
            paper = reference.get((setting, model))
        rows.append({"setting": setting, "model": model, **_row(values, paper)})
    return rows


def table1(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Table I: PSDS1 of each setting and model; columns setting, model, mean, std, n, published, difference."""
    reference = published("table1", ["setting", "model"], directory=published_dir)
    rows: list[dict] = []
    for setting in ordered_settings(config):
        scores = by_model(scored(results_dir, config, setting), list(config.models), source=f"evaluation of {setting}")
        rows += _setting_rows(setting, scores, reference)
    return pd.DataFrame(rows)


def teachers(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """The teachers of each setting by model, their average, and their ensemble; columns as in :func:`table1`."""
    reference = published("teachers", ["setting", "model"], directory=published_dir)
    rows: list[dict] = []
    for setting in teacher_settings(config):
        scores = by_model(
            evaluation(results_dir, "teachers", setting), list(config.models), source=f"teachers of {setting}"
        )
        rows += _setting_rows(setting, scores, reference)
        if ensemble_wanted(config, setting):
            together = evaluation(results_dir, "ensembles", setting)["psds1"].astype(float).tolist()
            rows.append({"setting": setting, "model": ENSEMBLE, **_row(together, reference.get((setting, ENSEMBLE)))})
    return pd.DataFrame(rows)


def ensemble_wanted(config: Config, setting: str) -> bool:
    """Whether some student learns from the teachers of `setting`, so that their ensemble exists."""
    students = [config.setting(name).student for name in config.settings if config.teachers_of(name) == setting]
    return any(student is not None and student.recipe.distillation_weight > 0 for student in students)


def significance(results_dir: str | Path, config: Config, *, seed: int = 0) -> pd.DataFrame:
    """Almost stochastic order of `proposed` over each other setting, per model (Sec. 3.4).

    `eps_min` is at the Bonferroni-corrected level; `eps_min_deepsig` is with the correction of the deepsig package,
    which is weaker. Significant: eps_min below `evaluation.epsilon`.
    """
    from framekd.significance import aso_test

    options = config.evaluation
    ours = scored(results_dir, config, "proposed")
    first = by_model(ours, list(config.models), source="evaluation of proposed")
    rows = []
    for setting in ordered_settings(config):
        if setting == "proposed":
            continue
        other = by_model(scored(results_dir, config, setting), list(config.models), source=f"evaluation of {setting}")
        for model in config.models:
            test = aso_test(first[model], other[model], comparisons=options.comparisons, alpha=options.alpha, seed=seed)
            rows.append(
                {
                    "comparison": f"proposed > {setting}",
                    "model": model,
                    "eps_min": test.eps_min,
                    "significant": bool(test.eps_min < options.epsilon),
                    "alpha": options.alpha,
                    "comparisons": options.comparisons,
                    "seeds": f"{len(first[model])} vs {len(other[model])}",
                    "eps_min_deepsig": test.eps_min_deepsig,
                }
            )
    return pd.DataFrame(rows)


def table2(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """Table II: downstream values; columns model, checkpoint, mode, task, mean, std, n, published, difference."""
    reference = published("table2", ["model", "checkpoint", "mode", "task"], directory=published_dir)
    rows = []
    for model in config.models:
        for checkpoint in config.downstream.checkpoints:
            for mode in config.downstream.modes:
                for task in TASKS:
                    path = Path(results_dir) / "downstream" / task / model / f"{checkpoint}.csv"
                    frame = read(path, ("mode", "seed", "value"))
                    values = (frame.loc[frame["mode"] == mode, "value"].astype(float) * 100).tolist()
                    if not values or any(math.isnan(value) for value in values):
                        raise UserError(f"{path}: no {mode} value; the downstream task has to be run whole")
                    key = {"model": model, "checkpoint": checkpoint, "mode": mode, "task": task}
                    rows.append({**key, **_row(values, reference.get(tuple(key.values())))})
    return pd.DataFrame(rows)


def orderings(results_dir: str | Path, config: Config, *, published_dir: str | Path = PUBLISHED) -> pd.DataFrame:
    """The paper's orderings, ours beside its own: gap of A over B in points, with the seeds' spread.

    `spread` is the root of the two sample variances' sum. `verdict`: "shown" where the gap exceeds the spread,
    "reversed" where it falls below minus the spread, else "within spread".
    """
    single = published("teachers", ["setting", "model"], directory=published_dir)
    students = published("table1", ["setting", "model"], directory=published_dir)
    models = list(config.models)
    rows: list[dict] = []

    def compare(name: str, stage: str, first: dict, second: dict, paper: dict[str, float | None]) -> None:
        for model in (*models, AVERAGE):
            if model in first and model in second:
                rows.append(_gap(name, stage, model, first[model], second[model], paper.get(model)))

    def paper_gap(source: dict, a: str, b: str) -> dict[str, float | None]:
        out = {m: source[a, m] - source[b, m] if {(a, m), (b, m)} <= source.keys() else None for m in models}
        return {**out, AVERAGE: _mean(out.values())}

    table = {
        name: by_model(scored(results_dir, config, name), models, source=f"evaluation of {name}")
        for name in ordered_settings(config)
    }
    names = {"without_kd": "KD", "without_rnn": "RNN", "without_step2": "Step 2", "li_et_al": "all three steps"}
    for setting, what in names.items():
        if setting in table and "proposed" in table:
            paper = paper_gap(students, "proposed", setting)
            compare(f"{what} over none", "Table I", table["proposed"], table[setting], paper)
    own = {
        name: by_model(evaluation(results_dir, "teachers", name), models, source=f"teachers of {name}")
        for name in teacher_settings(config)
    }
    for setting, what in {"without_rnn": "RNN", "without_step2": "Step 2"}.items():
        if setting in own and "proposed" in own:
            paper = paper_gap(single, "proposed", setting)
            compare(f"{what} over none", "teachers", own["proposed"], own[setting], paper)
    for setting, scores in own.items():
        if ensemble_wanted(config, setting):
            together = evaluation(results_dir, "ensembles", setting)["psds1"].astype(float).tolist()
            average = _mean(single.get((setting, model)) for model in models)
            gap = None if average is None else single[setting, ENSEMBLE] - average
            stage = f"teachers, {title_of(setting)}"
            compare("ensemble over average teacher", stage, {AVERAGE: together}, scores, {AVERAGE: gap})
    return pd.DataFrame(rows)


def _gap(name: str, stage: str, model: str, a: list[float], b: list[float], paper: float | None) -> dict:
    gap = sum(a) / len(a) - sum(b) / len(b)
    spread = math.sqrt(sum(std**2 for std in (_std(a), _std(b)) if not math.isnan(std)))
    verdict = "shown" if gap > spread else "reversed" if gap < -spread else "within spread"
    return {
        "ordering": name,
        "stage": stage,
        "model": model,
        "gap": gap,
        "spread": spread,
        "published_gap": math.nan if paper is None else paper,
        "verdict": verdict,
    }
