"""The report's page: each section from the findings, then the HTML."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from framekd import tables
from framekd.config import Config
from framekd.examples import Examples
from framekd.files import write_text
from framekd.report import figures
from framekd.report.gather import Findings, ReportInputs, commit_of, gather
from framekd.report.sound import audio

TITLE = "Effective pre-training of audio transformers for sound event detection"
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1)


def write_report(
    inputs: ReportInputs,
    *,
    html: Path,
    compute: Path,
    orderings: Path | None,
    config: Config,
    threshold: float | None = None,
) -> list[str]:
    """Write the report of a run.

    Args:
        inputs: every file that is read.
        html: the page to write.
        compute: .csv to write: what the trainings cost.
        orderings: .csv to write: the paper's orderings in this run; None for a run without teachers.
        config: the run's configuration.
        threshold: score from which a frame of the example clips is shown as detected; None: see `shown_threshold`.
    Returns:
        A sentence per part that is missing; they are on the page too.
    """
    found = gather(inputs)
    if orderings is not None and {"table1", "teachers"} <= found.tables.keys():
        three = (found.tables.get(name) for name in ("table1", "teachers", "table2"))
        found.tables["orderings"] = tables.orderings(*three)
        tables.write_csv(orderings, found.tables["orderings"])
    tables.write_csv(compute, found.costs)
    page = _environment().get_template("report.html.j2")
    text = page.render(
        title=TITLE,
        miniature=tables.MINIATURE_NOTE if config.miniature is not None else None,
        facts=_facts(config, found),
        headline=_headline(found),
        tables=_tables(found),
        orderings=_orderings(found),
        significance=_significance(found, config.evaluation.epsilon),
        figures=_figures(found, threshold, list(config.models)),
        coverage=_coverage(found.coverage),
        times=_times(found),
        costs=_strings(found.costs.round(2)) if len(found.costs) else None,
        missing=found.missing,
    )
    write_text(html, text)
    return found.missing


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("framekd", "templates")
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


def _facts(config: Config, found: Findings) -> list[tuple[str, str]]:
    """Names and values that say which run this is."""
    teacher, student = config.teacher.recipe, config.student.recipe
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        ("written", when),
        ("code", commit_of()),
        ("data", "embedded miniature" if config.miniature is not None else "AudioSet"),
        ("models", ", ".join(config.models)),
        ("seeds", ", ".join(map(str, config.seeds))),
        ("settings", ", ".join(map(tables.title_of, tables.in_order(config.settings)))),
        ("teachers", f"{teacher.epochs} epochs of {teacher.epoch_clips:,} clips, batch {teacher.batch_size}"),
        ("students", f"{student.epochs} epochs of {student.epoch_clips:,} clips, batch {student.batch_size}"),
        ("evaluated on", _evaluated(found.evaluations)),
        ("sizes", _sizes(config.sizes)),
        ("results", config.results_dir),
    ]


def _sizes(sizes: Mapping[str, Mapping[str, Any]]) -> str:
    """Sizes that differ from the paper's, as text."""

    def word(value: Any) -> str:
        return ", ".join(map(word, value)) if isinstance(value, list | tuple) else str(value)

    parts = []
    for model, values in sizes.items():
        names = [f"{name.replace('_', ' ')} {word(value)}" for name, value in values.items()]
        parts.append(f"{'all models' if model == 'all' else model}: {', '.join(names)}")
    return "; ".join(parts) or "the paper's"


def _evaluated(rows: pd.DataFrame | None) -> str:
    """Number of clips, hours, events and classes behind the scores."""
    keys = ["clips", "hours", "events", "classes"]
    if rows is None or not set(keys) <= set(rows):
        return "unknown"
    sizes = rows[keys].drop_duplicates()
    return "; ".join(
        f"{row.clips:,} clips ({row.hours:.2f} h), {row.events:,} events of {row.classes} classes"
        for row in sizes.itertuples()
    )


def _number(value: Any, digits: int = 1) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}".replace("-", "−")


def _cell(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A cell: mean, standard deviation, published value, signed difference and its direction, and further values."""
    gap = row["difference"]
    known = not pd.isna(gap)
    return {
        "mean": _number(row["mean"]),
        "std": _number(row["std"]),
        "published": _number(row["published"]),
        "difference": f"{gap:+.1f}".replace("-", "−") if known else "",
        "direction": "" if not known else "up" if gap >= 0 else "down",
        "further": tables.further(row),
    }


def _tables(found: Findings) -> list[dict[str, Any]]:
    out = []
    for name, heading in (("table1", "Table I: students"), ("teachers", "Teachers and their ensembles")):
        if name in found.tables:
            frame = found.tables[name]
            models = list(dict.fromkeys(frame["model"]))
            lines = []
            for setting in dict.fromkeys(frame["setting"]):
                part = {row["model"]: row for row in frame[frame["setting"] == setting].to_dict("records")}
                cells = [_cell(part[m]) if m in part else None for m in models]
                lines.append({"heads": [tables.title_of(setting)], "cells": cells})
            table = {"id": name, "heading": heading, "caption": _caption(name, frame)}
            out.append({**table, "heads": ["setting"], "columns": models, "groups": [], "lines": lines})
    if "table2" in found.tables:
        out.append(_table2(found.tables["table2"]))
        if (rates := tables.wide_rates(found.tables["table2"])) is not None:
            out.append(_rates(rates, tables.rates_title(found.tables["table2"])))
    if "step2" in found.tables:
        out.append(_step2(found.tables["step2"]))
    return out


def _caption(name: str, frame: pd.DataFrame) -> str:
    return " ".join([tables.TITLES[name], *tables.own_notes(frame)])


def _step2(frame: pd.DataFrame) -> dict[str, Any]:
    lines = []
    for row in frame.to_dict("records"):
        known = not pd.isna(row["map"])
        cell = _cell({**row, "mean": row["map"], "std": math.nan}) if known else None
        lines.append(
            {"heads": [row["model"], row["source"] if known else f"{row['source']}: {row['note']}"], "cells": [cell]}
        )
    return {
        "id": "step2",
        "heading": "Step 2: mAP",
        "caption": tables.TITLES["step2"],
        "heads": ["model", "source"],
        "groups": [],
        "columns": ["mAP"],
        "lines": lines,
    }


def _table2(frame: pd.DataFrame) -> dict[str, Any]:
    columns, lines = tables.table2_lines(frame)
    groups: dict[str, int] = {}
    for mode, _ in columns:
        groups[mode] = groups.get(mode, 0) + 1
    return {
        "id": "table2",
        "heading": "Table II: downstream",
        "caption": _caption("table2", frame),
        "heads": ["model", "checkpoint"],
        "groups": [(tables.MODES.get(mode, mode), count) for mode, count in groups.items()],
        "columns": [task for _, task in columns],
        "lines": [{"heads": heads, "cells": [row and _cell(row) for row in cells]} for heads, cells in lines],
    }


def _rates(wide: pd.DataFrame, caption: str) -> dict[str, Any]:
    """The learning rates of Table II, in its layout."""
    lines = []
    for model, checkpoint, *rates in wide.itertuples(index=False):
        plain = {"std": "", "published": "", "further": []}
        lines.append({"heads": [model, checkpoint], "cells": [{"mean": text, **plain} for text in rates]})
    about = {"id": "rates", "heading": "Learning rates of Table II", "caption": caption, "plain": True}
    heads = list(wide.columns)
    return {**about, "heads": heads[:2], "groups": [], "columns": heads[2:], "lines": lines}


def _headline(found: Findings) -> list[dict[str, str]]:
    """The three most important numbers."""
    out = []
    wanted = [
        ("table1", "proposed", tables.AVERAGE, "proposed students, mean over models"),
        ("teachers", "proposed", tables.AVERAGE, "their teachers, average"),
        ("teachers", "proposed", tables.ENSEMBLE, "ensemble of the teachers"),
    ]
    for name, setting, model, label in wanted:
        if name in found.tables:
            frame = found.tables[name]
            rows = frame[(frame["setting"] == setting) & (frame["model"] == model)].to_dict("records")
            if rows:
                out.append({"label": label, "unit": "PSDS1 / %", **_cell(rows[0])})
    return out


def _orderings(found: Findings) -> dict[str, Any] | None:
    """A row per ordering, a column per model: gap, spread, published gap, verdict."""
    if "orderings" not in found.tables:
        return None
    frame = found.tables["orderings"]
    models = sorted(dict.fromkeys(frame["model"]), key=lambda name: name != tables.AVERAGE)  # the average first
    lines = []
    for name, stage in dict.fromkeys(zip(frame["ordering"], frame["stage"])):
        part = frame[(frame["ordering"] == name) & (frame["stage"] == stage)]
        by = {row["model"]: row for row in part.to_dict("records")}
        cells = [
            {
                "gap": _signed(by[m]["gap"]),
                "spread": _number(by[m]["spread"]),
                "published": _signed(by[m]["published_gap"]),
                "verdict": by[m]["verdict"],
            }
            if m in by
            else None
            for m in models
        ]
        lines.append({"ordering": name, "stage": stage, "cells": cells})
    return {"models": models, "lines": lines}


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def _significance(found: Findings, epsilon: float) -> dict[str, Any] | None:
    if "significance" not in found.tables:
        return None
    frame = found.tables["significance"]
    models = list(dict.fromkeys(frame["model"]))
    lines = []
    for comparison in dict.fromkeys(frame["comparison"]):
        part = frame[frame["comparison"] == comparison].set_index("model")
        cells = [
            {"eps": _number(part.loc[m, "eps_min"], 2), "yes": bool(part.loc[m, "significant"])}
            if m in part.index
            else None
            for m in models
        ]
        lines.append({"comparison": comparison, "cells": cells})
    first = frame.iloc[0]
    return {
        "models": models,
        "lines": lines,
        "alpha": first["alpha"],
        "comparisons": first["comparisons"],
        "epsilon": epsilon,
        "note": first.get("note") or "",
    }


def _coverage(frame: pd.DataFrame | None) -> list[dict[str, Any]] | None:
    """Clips by split and state: of all classes together, then a row per class. Another layout is shown as it is."""
    if frame is None:
        return None
    if set(frame.columns) != {"split", "class", "state", "clips"}:
        return [{"title": "", **_strings(frame)}]
    out = []
    single = frame["class"].notna()
    for title, part in (("", frame[~single]), ("class by class", frame[single & (frame["clips"] > 0)])):
        if len(part):
            keys = ["split"] if not title else ["split", "class"]
            wide = part.pivot_table(
                index=keys, columns="state", values="clips", aggfunc="sum", fill_value=0, sort=False
            )
            out.append({"title": title, **_strings(wide.reset_index())})
    return out


def _strings(frame: pd.DataFrame) -> dict[str, Any]:
    shown = frame.astype(object).where(frame.notna(), "")
    return {"columns": list(frame.columns), "lines": shown.values.tolist()}


def _times(found: Findings) -> dict[str, Any] | None:
    if found.times is None:
        return None
    frame = found.times
    return {
        "minutes": f"{frame['seconds'].sum() / 60:.1f}",
        "jobs": len(frame),
        "memory": _number(frame["memory_mb"].max() / 1000),
        "figure": figures.time_bars(frame.groupby("stage")["seconds"].sum(), title="time per stage"),
    }


def _figures(found: Findings, threshold: float | None, models: list[str]) -> dict[str, Any]:
    """All figures, as SVG text."""
    out: dict[str, Any] = {"settings": None, "classes": [], "curves": [], "warnings": [], "examples": []}
    if "table1" in found.tables:
        titles = {name: tables.title_of(name) for name in found.tables["table1"]["setting"]}
        out["settings"] = figures.setting_dots(found.tables["table1"], titles)
    if found.classes is not None:
        frame = found.classes
        keys = [name for name in ("stage", "setting") if name in frame]
        groups = frame.groupby(keys, sort=False) if keys else [((), frame)]
        for key, part in sorted(groups, key=lambda group: group[0] != ("students", "proposed")):
            words = [tables.title_of(word) for word in key]
            name = ", ".join(words) or "all"
            out["classes"].append(
                {"name": name, "svg": figures.class_bars(part, title=name), "open": not out["classes"]}
            )
    for stage, runs in found.histories.items():
        column = loss_column(runs)
        if column is None:
            found.missing.append(f"training curves of {stage}: no column with a loss")
            continue
        order = sorted(runs, key=lambda key: (models.index(key[1]) if key[1] in models else len(models), key))
        titled = {(tables.title_of(a), b, c): runs[a, b, c] for a, b, c in order}
        label = f"training loss, {stage}, {len(runs)} runs"
        out["curves"].append({"name": label, "svg": figures.curves(titled, column=column, label=label)})
        for watched, metric in (("watch/psds1", "PSDS1"), ("watch/map", "mAP")):
            if any(watched in frame for frame in titled.values()):
                label = f"{metric} on clips held out of training, {stage}"
                out["curves"].append({"name": label, "svg": figures.curves(titled, column=watched, label=label)})
        out["warnings"] += learnt_nothing(stage, titled)
    for examples in found.examples:
        level = shown_threshold(examples) if threshold is None else threshold
        drawn = [(clip, figures.timeline(clip, examples, threshold=level)) for clip in examples.clips]
        clips = [{"id": c.id, "svg": svg, "events": c.events, "audio": audio(c.waveform)} for c, svg in drawn]
        out["examples"].append({"title": examples.title, "clips": clips, "threshold": level})
    return out


def learnt_nothing(stage: str, runs: Mapping[tuple[str, str, str], pd.DataFrame]) -> list[str]:
    """A sentence per run whose last ``watch/learnt`` is 0."""
    out = []
    for name, frame in runs.items():
        if "watch/learnt" in frame and len(learnt := frame["watch/learnt"].dropna()) and not learnt.iloc[-1]:
            run = ", ".join(dict.fromkeys(filter(None, (stage, *name))))
            out.append(f"{run}: has learnt nothing by step {learnt.index[-1]:,}; see its log")
    return out


def shown_threshold(examples: Examples) -> float:
    """The highest of 0.5, 0.4, … 0.1 that half of the example clips reach; small models rarely score above 0.5."""
    peaks = [float(clip.scores.max()) for clip in examples.clips]
    reached = (level for level in THRESHOLDS if 2 * sum(peak >= level for peak in peaks) >= len(peaks))
    return next(reached, THRESHOLDS[-1])


def loss_column(runs: dict) -> str | None:
    """Name of the column with the training loss."""
    names = {name for frame in runs.values() for name in frame.columns}
    for wanted in ("train/loss", "loss", "train_loss"):
        if wanted in names:
            return wanted
    return next((name for name in sorted(names) if name.endswith("loss")), None)
