"""The tables of a run that is not complete: every cell that is scored, and why each other one is not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from framekd import tables
from framekd.config import Config, UserError
from framekd.files import write_json
from framekd.graph import WEIGHTS, Graph, Stage, log_of
from framekd.jobs import Searched
from framekd.pipeline.log import why_ended

Value = dict[str, float]
"""Subset of the evaluation clips → score in percent. "" is the subset of column psds1, or all clips."""
Cells = dict[tuple[str, ...], tuple[list[Value], list[str]]]
"""Key of a cell → its values, and a sentence for each value that is missing."""


def write_config(graph: Graph) -> None:
    """Write the configuration of a run into its results, for `framekd tables`."""
    write_json(_config_file(graph.results), graph.config.model_dump(mode="json", by_alias=True))


def read_config(results: str | Path) -> Config:
    """The configuration of the run whose results are in a folder. Raises UserError if it is missing or damaged."""
    path = _config_file(results)
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder of results of a run that was started with snakemake")
    try:
        return Config.model_validate(json.loads(path.read_text()) | {"results_dir": str(results)})
    except ValueError:
        raise UserError(f"{path} is not a configuration of this version; start the run again with snakemake") from None


def _config_file(results: str | Path) -> Path:
    return Path(results) / "config.json"


def write_partial_tables(graph: Graph, *, published_dir: str | Path = tables.PUBLISHED) -> list[Path]:
    """Write what there is of each table that is not complete, as .partial.csv and .partial.md.

    Args:
        graph: of the run.
        published_dir: folder of the paper's numbers.
    Returns:
        The files that were written. Those of a table that is complete are removed.
    """
    written: list[Path] = []
    rows: dict[str, tuple[Stage, str]] = {name: graph.scored(name) for name in graph.settings}
    teachers: dict[str, tuple[Stage, str]] = {name: ("teachers", name) for name in graph.teacher_settings}
    found = {"table1": _settings(graph, rows), "teachers": _teachers(graph, teachers), "table2": _transfers(graph)}
    for name, cells in found.items():
        csv = graph.tables.get(name)
        if csv is None:
            continue
        if Path(csv).is_file() and not any(missing for _, missing in cells.values()):
            remove_partial_table(csv)
        else:
            written += tables.write_partial(
                name, cells, csv, miniature=graph.config.miniature is not None, published_dir=published_dir
            )
    return written


def remove_partial_table(csv: str | Path) -> None:
    """Remove what was written while the table `csv` was not complete."""
    for path in tables.partial_files(csv):
        path.unlink(missing_ok=True)


# Cells ------------------------------------------------------------------------------------------------------------


def _settings(graph: Graph, rows: Mapping[str, tuple[Stage, str]]) -> Cells:
    """Cells of Table I, or of the teachers without their ensembles: a row per setting, then the average."""
    cells: Cells = {}
    models, seeds = graph.config.models, graph.config.seeds
    for name in tables.in_order(rows):
        stage, setting = rows[name]
        found = {one: _score(graph.evaluation(stage, setting, *one), _weights(graph, stage, setting, *one))
                 for one in graph.members}  # fmt: skip
        for model in models:
            values = [v for seed in seeds if (v := found[model, seed]) is not None]
            lacking = [seed for seed in seeds if found[model, seed] is None]
            cells[name, model] = values, [_why(graph, stage, setting, model, seed) for seed in lacking]
        by_seed = [[v for model in models if (v := found[model, seed]) is not None] for seed in seeds]
        whole = [_mean(values) for values in by_seed if len(values) == len(models)]
        missing = [f"{len(whole)} of {len(seeds)} seeds have every model"] if len(whole) < len(seeds) else []
        cells[name, tables.AVERAGE] = whole, missing
    return cells


def _teachers(graph: Graph, rows: Mapping[str, tuple[Stage, str]]) -> Cells:
    """Cells of the teachers' table: those of each setting, and its ensemble."""
    cells: Cells = {}
    for setting in tables.in_order(rows):
        cells |= _settings(graph, {setting: rows[setting]})
        weights = [_weights(graph, "teachers", setting, *one) for one in graph.members]
        value = _score(graph.ensemble_score(setting), *weights)
        missing = [f"ensemble of {setting}: {_why_together(graph, setting)}"] if value is None else []
        cells[setting, tables.ENSEMBLE] = [] if value is None else [value], missing
    return cells


def _transfers(graph: Graph) -> Cells:
    """Cells of Table II."""
    cells: Cells = {}
    block, models = graph.config.downstream, graph.config.models
    pairs = tables.cells_of(block.checkpoints, block.modes)
    steps: list[str] = [*block.checkpoints]
    found = {(m, step, t): _transfer(graph, t, m, step) for m in models for step in steps for t in graph.tasks}
    for model in models:
        for (step, mode), task in itertools.product(pairs, graph.tasks):
            frame, reason = found[model, step, task]
            values = _values(frame, mode)
            missing = [] if values else [f"{task} from {step} of {model}: {reason}"]
            cells[model, step, mode, task] = values, missing
    for (step, mode), task in itertools.product(pairs, graph.tasks):
        by_model = [cells[model, step, mode, task][0] for model in models]
        lacking = [model for model, values in zip(models, by_model) if not values]
        averages = [] if lacking else [_mean(values) for values in zip(*by_model)]
        missing = [f"average of {task} from {step}: waits for {', '.join(lacking)}"] if lacking else []
        cells[tables.AVERAGE, step, mode, task] = averages, missing
    for task in graph.tasks if "untrained" in block.checkpoints else ():
        frames = [found[model, "untrained", task] for model in models]
        frame, reason = next((one for one in frames if one[0] is not None), frames[0])
        values = _values(frame, tables.CONSTANT)
        cells[*tables.GUESS, task] = values, [] if values else [f"constant guess of {task}: {reason}"]
    return cells


def _values(frame: pd.DataFrame | None, mode: str) -> list[Value]:
    """The values of a downstream job in one mode, by run; of DESED also those without the penalty."""
    if frame is None:
        return []
    rows = frame[frame["mode"] == mode]
    further = rows[tables.WITHOUT_PENALTY]
    return [{"": v} if math.isnan(w) else {"": v, tables.WITHOUT_PENALTY: w} for v, w in zip(rows["value"], further)]


def _transfer(graph: Graph, task: str, model: str, step: str) -> tuple[pd.DataFrame | None, str]:
    """The scores of a downstream job in percent, or why there are none."""
    path, weights = graph.transfer(task, model, step), Path(graph.checkpoint(step, model)) / WEIGHTS
    if _is_newer(path, weights):
        return tables.transfers([path]), "has no value for this mode"
    if not weights.is_file():
        return None, f"waits for its checkpoint: {_why_no_checkpoint(graph, step, model)}"
    log = f"{graph.results}/logs/downstream/{task}/{step}/{log_of(graph.packs(graph.config.models), model)}.log"
    waits = _failed("job", f"{graph.results}/logs/data/tasks/{task}.log")
    return None, _failed("job", log) or (f"waits for its data: {waits}" if waits else "not run yet")


def _weights(graph: Graph, stage: str, setting: str, model: str, seed: int) -> Path:
    return Path(graph.run(stage, setting, model, seed)) / WEIGHTS


def _score(path: str, *weights: Path) -> Value | None:
    """PSDS1 that an evaluation has written; None if it is not there, or older than its models."""
    if not _is_newer(path, *weights):
        return None
    row = tables.read(path, ("psds1",)).iloc[0]
    further = {name: 100 * float(row[f"psds1_{name}"]) for name in tables.subsets(path)}
    return {"": 100 * float(row["psds1"]), **further}


def _mean(values: Sequence[Value]) -> Value:
    names = [name for name in values[0] if all(name in value for value in values)]
    return {name: sum(value[name] for value in values) / len(values) for name in names}


def _is_newer(path: str, *sources: Path) -> bool:
    """Whether a result is there with everything that it was made from, and not older."""
    files = [Path(path), *sources]
    if not all(file.is_file() for file in files):
        return False
    times = [file.stat().st_mtime_ns for file in files]
    return times[0] == max(times)


# Reasons ----------------------------------------------------------------------------------------------------------


def _why(graph: Graph, stage: Stage, setting: str, model: str, seed: int) -> str:
    """Why a training of Step 3 has no score."""
    if not _weights(graph, stage, setting, model, seed).is_file():
        return _why_not_trained(graph, stage, setting, model, seed)
    log = f"{graph.results}/logs/evaluation/{stage}/{setting}/{_log_name(graph, model, seed)}.log"
    return f"{_name(stage, setting, model, seed)}: {_failed('scoring', log) or 'not scored yet'}"


def _name(stage: Stage, setting: str, model: str, seed: int) -> str:
    return f"{stage.removesuffix('s')} {model} seed {seed} of {setting}"


def _why_together(graph: Graph, setting: str) -> str:
    """Why the ensemble of a setting has no score."""
    log = f"{graph.results}/logs/evaluation/ensembles/{setting}.log"
    return _why_no_teachers(graph, setting) or _failed("scoring", log) or "not scored yet"


def _why_no_teachers(graph: Graph, setting: str) -> str | None:
    """Why not all teachers of a setting are there: the first that failed, or else the first that is missing."""
    lacking = [one for one in graph.members if not _weights(graph, "teachers", setting, *one).is_file()]
    whys = [_why_not_trained(graph, "teachers", setting, *one) for one in lacking]
    return next((why for why in whys if "failed" in why), next(iter(whys), None))


def _why_not_trained(graph: Graph, stage: Stage, setting: str, model: str, seed: int) -> str:
    """Why a training of Step 3 has no result, with its name: it failed, or what it waits for."""
    log = f"{graph.results}/logs/{stage}/{setting}/{_log_name(graph, model, seed)}.log"
    why = _failed("training", log) or _waits_for(graph, stage, setting, model) or "not trained yet"
    return f"{_name(stage, setting, model, seed)}: {why}"


def _waits_for(graph: Graph, stage: Stage, setting: str, model: str) -> str | None:
    """Which input of a training of Step 3 is not there, and why; None if there is no such input."""
    start = graph.settings[setting].start
    if not (Path(graph.checkpoint(start, model)) / WEIGHTS).is_file():
        return f"waits for its checkpoint: {_why_no_checkpoint(graph, start, model)}"
    for path in graph.soft_labels(stage, setting):
        owner = graph.teachers[setting]
        if not Path(path).is_file() and owner is not None:
            log = f"{graph.results}/logs/ensembles/{owner}.log"
            why = _why_no_teachers(graph, owner) or _failed("averaging", log) or "not averaged yet"
            return f"waits for the ensemble: {why}"
    return _why_no_rate(graph, stage, setting, model) or _why_no_data(graph)


def _why_no_rate(graph: Graph, stage: Searched, setting: str, model: str) -> str | None:
    """Why the learning rate of a training is not there; None if it is, or if none is searched."""
    if all(Path(path).is_file() for path in graph.rates(stage, setting, [model])):
        return None
    logs, end = Path(graph.results) / "logs", f"{stage}/{setting}/{model}"
    tried = [*logs.glob(f"search/{end}/*.log"), logs / f"choose/{end}.log"]
    return f"waits for its learning rate: {_first_failed('search', tried) or 'not searched yet'}"


def _why_no_checkpoint(graph: Graph, step: str, model: str) -> str:
    """Why a checkpoint is not there: "untrained", "step1", "step2", or "full" (a student)."""
    if step == "full":
        return _why_not_trained(graph, "students", graph.config.downstream.full_setting, model, graph.config.seeds[0])
    logs = f"{graph.results}/logs"
    if step in ("untrained", "step1"):
        log = f"{logs}/{step}/{log_of(graph.packs(graph.config.models), model)}.log"
    elif model in graph.step2_external:
        log = f"{logs}/step2/external/{log_of(graph.packs(graph.step2_external), model)}.log"
    else:
        log = f"{logs}/step2/{log_of(graph.packs(graph.step2_trained), model)}.log"
        if not Path(log).is_file():
            if not (Path(graph.checkpoint("step1", model)) / WEIGHTS).is_file():
                return _why_no_checkpoint(graph, "step1", model)
            made = ("soft_labels/*.log", "weak_members/**/*.log", "ensembles/step2/*.log")
            found = [path for pattern in made for path in sorted(Path(logs).glob(pattern))]
            if not all(Path(path).is_file() for path in graph.clip_soft_labels()):
                why = _first_failed("job", found) or _why_no_data(graph) or "not made yet"
                return f"waits for the soft labels of Step 2: {why}"
            if rate := _why_no_rate(graph, "step2", "trained", model):
                return rate
    return _failed(f"{step} of {model}", log) or _why_no_data(graph) or f"{step} of {model} has not run yet"


def _why_no_data(graph: Graph) -> str | None:
    """The first job of the data that failed."""
    logs = Path(graph.results) / "logs"
    found = [path for name in ("miniature", "data", "acquire") for path in sorted(logs.glob(f"{name}/*.log"))]
    why = _first_failed("job", found)
    return None if why is None else f"waits for the data: {why}"


def _log_name(graph: Graph, model: str, seed: int) -> str:
    return log_of(graph.packs(graph.config.models, graph.config.seeds), model, seed)


def _first_failed(what: str, logs: Iterable[Path]) -> str | None:
    return next((why for log in logs if (why := _failed(what, log))), None)


def _failed(what: str, log: str | Path) -> str | None:
    """What a job that did not end well wrote last; None if it ended well or has not begun.

    A job that ends well leaves a record beside its log (see :func:`framekd.pipeline.log.job_log`).
    """
    log = Path(log)
    if not log.is_file() or log.with_suffix(".json").is_file():
        return None
    return f"{what} failed: {why_ended(log) or 'it was killed, or is still running'}; see {log}"
