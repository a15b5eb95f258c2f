"""Reading the files of a run for its report. A file that is missing or unreadable is named, not skipped in silence."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from framekd.examples import Examples, read_examples

COSTS = ["stage", "device", "runs", "hours", "watt_hours"]


@dataclass(frozen=True)
class ReportInputs:
    """Every file that the report reads.

    Attributes:
        tables: name ("table1", "teachers", "significance", "table2", "step2") → .csv. A run without teachers has no
            "teachers", one without AudioSet Weak no "step2".
        evaluations: (stage, setting, table .csv, per-class .csv) of each training.
        examples: clips with a model's scores (.npz), if there is such a file.
        histories: (stage, setting, model, seed, history.jsonl). Step 2 has the setting "Step 2" and the seed "".
        specs: (stage, spec.json of a training or result.json of a searched rate).
        coverage: the clips by split, class and state (.tsv), a file per group of clips.
        benchmarks: (stage, benchmark .tsv of Snakemake).
    """

    tables: Mapping[str, Path]
    evaluations: Sequence[tuple[str, str, Path, Path]] = ()
    examples: Path | None = None
    histories: Sequence[tuple[str, str, str, str, Path]] = ()
    specs: Sequence[tuple[str, Path]] = ()
    coverage: Sequence[Path] = ()
    benchmarks: Sequence[tuple[str, Path]] = ()


@dataclass
class Findings:
    """The content of the files. `missing` has one sentence per part that could not be read."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    evaluations: pd.DataFrame | None = None
    classes: pd.DataFrame | None = None
    histories: dict[str, dict[tuple[str, str, str], pd.DataFrame]] = field(default_factory=dict)
    examples: list[Examples] = field(default_factory=list)
    costs: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COSTS))
    coverage: pd.DataFrame | None = None
    times: pd.DataFrame | None = None
    missing: list[str] = field(default_factory=list)


def gather(inputs: ReportInputs) -> Findings:
    """Read all files of `inputs`."""
    found = Findings()
    for name, path in inputs.tables.items():
        frame = _csv(path, found)
        if frame is not None:
            found.tables[name] = frame
    _evaluations(inputs, found)
    _histories(inputs, found)
    _examples(inputs, found)
    _costs(inputs, found)
    counts = [frame for path in inputs.coverage if (frame := _csv(path, found, sep="\t")) is not None]
    if counts:
        found.coverage = pd.concat(counts, ignore_index=True)
    _times(inputs, found)
    for part in ("evaluations", "histories", "specs", "coverage", "benchmarks"):
        if not getattr(inputs, part):
            found.missing.append(f"{part}: no file was given to the report")
    return found


def _csv(path: Path, found: Findings, **options) -> pd.DataFrame | None:
    if not Path(path).is_file():
        found.missing.append(f"{path}: missing")
        return None
    try:
        return pd.read_csv(path, **options)
    except ValueError as error:  # pandas' parser and empty-file errors are ValueErrors
        found.missing.append(f"{path}: unreadable ({error})")
        return None


def _evaluations(inputs: ReportInputs, found: Findings) -> None:
    rows, classes = [], []
    for stage, setting, table, per_class in inputs.evaluations:
        if (frame := _csv(table, found)) is not None:
            rows.append(frame)
        if (frame := _csv(per_class, found)) is not None:
            classes.append(frame.assign(stage=stage, setting=setting))
    if rows:
        found.evaluations = pd.concat(rows, ignore_index=True)
    if classes:
        found.classes = pd.concat(classes, ignore_index=True)


def read_history(path: Path) -> pd.DataFrame:
    """Read a training's history.jsonl as a frame indexed by step. An incomplete last line is left out."""
    lines = []
    for number, line in enumerate(text := path.read_text().splitlines()):
        if not line.strip():
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            if number + 1 < len(text):
                raise ValueError(f"{path}: line {number + 1} is not JSON") from None
    frame = pd.json_normalize(lines, sep="/")
    return frame.set_index("step") if "step" in frame else frame


def _histories(inputs: ReportInputs, found: Findings) -> None:
    for stage, setting, model, seed, path in inputs.histories:
        try:
            frame = read_history(Path(path))
        except (OSError, ValueError) as error:
            found.missing.append(f"training curve: {_reason(path, error)}")
            continue
        if len(frame):
            found.histories.setdefault(stage, {})[setting, model, seed] = frame


def _reason(path: str | Path, error: Exception) -> str:
    return f"{path}: missing" if isinstance(error, FileNotFoundError) else f"{path}: unreadable ({error})"


def _examples(inputs: ReportInputs, found: Findings) -> None:
    if inputs.examples is None:
        return
    try:
        found.examples.append(read_examples(inputs.examples))
    except Exception as error:  # noqa: BLE001 - a damaged archive raises whatever it likes, such as zlib.error
        found.missing.append(f"example clips: {_reason(inputs.examples, error)}")


def _costs(inputs: ReportInputs, found: Findings) -> None:
    listed = []
    for stage, path in inputs.specs:
        try:
            about = json.loads(Path(path).read_text())
            costs([(stage, about := about.get("provenance", about))])
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            found.missing.append(f"cost of a training: {_reason(path, error)}")
            continue
        listed.append((stage, about))
    found.costs = costs(listed)


def costs(provenances: Sequence[tuple[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """Sum hours and energy of trainings.

    Args:
        provenances: (stage, provenance). One without "hours" is left out: a published checkpoint, or a searched rate
            that diverged.
    Returns:
        A row per stage and device, then a row "all" per device. Columns stage, device, runs, hours (GPU hours: two GPUs
        for an hour are two; of a CPU: wall time) and watt_hours (of GPUs; NaN if no run has a value).
    """
    rows = []
    for stage, about in provenances:
        if "hours" in about:
            gpus = about.get("processes", 1) if about["device"] != "cpu" else 1
            energy = about.get("watt_hours", float("nan"))
            rows.append((stage, str(about["device"]), float(about["hours"] * gpus), float(energy)))
    if not rows:
        return pd.DataFrame(columns=COSTS)
    frame = pd.DataFrame(rows, columns=["stage", "device", "hours", "watt_hours"])
    groups = pd.concat([frame, frame.assign(stage="all")]).groupby(["stage", "device"], sort=False)
    out = groups.agg(
        runs=("hours", "size"), hours=("hours", "sum"), watt_hours=("watt_hours", lambda v: v.sum(min_count=1))
    )
    return out.reset_index()[COSTS]


def _times(inputs: ReportInputs, found: Findings) -> None:
    rows = []
    for stage, path in inputs.benchmarks:
        frame = _csv(path, found, sep="\t")
        if frame is None:
            continue
        if "s" not in frame:
            found.missing.append(f"{path}: unreadable (no column s)")
            continue
        memory = pd.to_numeric(frame["max_rss"], errors="coerce").max() if "max_rss" in frame else float("nan")
        seconds = float(pd.to_numeric(frame["s"], errors="coerce").sum())
        rows.append({"stage": stage, "seconds": seconds, "memory_mb": memory})
    if rows:
        found.times = pd.DataFrame(rows)


def commit_of(folder: str | Path = ".") -> str:
    """Commit of the code, marked "-dirty" if files differ from it; "unknown" outside a repository."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip()
