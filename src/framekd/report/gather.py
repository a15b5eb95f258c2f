"""Reading what a run left for its report; whatever is absent is said, never passed over."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from framekd.examples import Examples, read_examples


@dataclass
class Findings:
    """Everything a report is made of; `missing` has one sentence per part that could not be found or read."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    evaluations: pd.DataFrame | None = None
    classes: pd.DataFrame | None = None
    histories: dict[str, dict[tuple[str, str, str], pd.DataFrame]] = field(default_factory=dict)
    examples: list[Examples] = field(default_factory=list)
    coverage: pd.DataFrame | None = None
    times: pd.DataFrame | None = None
    missing: list[str] = field(default_factory=list)


def gather(results_dir: str | Path, data_dir: str | Path, *, benchmarks: str | Path | None = None) -> Findings:
    """Read tables, evaluations, histories, examples, coverage and benchmarks of one run."""
    results, data, found = Path(results_dir), Path(data_dir), Findings()
    for name in ("table1", "teachers", "significance", "table2"):
        frame = _csv(results / f"{name}.csv", found)
        if frame is not None:
            found.tables[name] = frame
    _evaluations(results / "evaluation", found)
    _histories(results, found)
    _examples(results / "evaluation", found)
    _coverage(data, found)
    _times(Path(benchmarks) if benchmarks else results / "benchmarks", found)
    return found


def _csv(path: Path, found: Findings, **options) -> pd.DataFrame | None:
    if not path.is_file():
        found.missing.append(f"{path.name}: not there ({path})")
        return None
    try:
        return pd.read_csv(path, **options)
    except (ValueError, pd.errors.ParserError) as error:
        found.missing.append(f"{path.name}: unreadable ({error})")
        return None


def _evaluations(folder: Path, found: Findings) -> None:
    rows: list[pd.DataFrame] = []
    classes: list[pd.DataFrame] = []
    for path in sorted(folder.glob("*/*.csv")):
        frame = _csv(path, found)
        if frame is None:
            continue
        if {"class", "psds1"} <= set(frame.columns):
            setting = path.name.split(".")[0]
            classes.append(frame.assign(stage=path.parent.name, setting=setting))
        else:
            rows.append(frame)
    if rows:
        found.evaluations = pd.concat(rows, ignore_index=True)
    else:
        found.missing.append(f"evaluations: no .csv under {folder}")
    if classes:
        found.classes = pd.concat(classes, ignore_index=True)
    else:
        found.missing.append(f"scores per class: no .csv with a column `class` under {folder}")


def read_history(path: Path) -> pd.DataFrame:
    """A training's history.jsonl as a frame indexed by step; a torn last line is left out."""
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
    if "step" in frame:
        frame = frame.set_index("step")
    return frame


def _histories(results: Path, found: Findings) -> None:
    stages = {"Step 2": "checkpoints/step2/*/", "teachers": "teachers/*/*/*/", "students": "students/*/*/*/"}
    for stage, pattern in stages.items():
        runs = {}
        for path in sorted(results.glob(pattern + "history.jsonl")):
            parts = path.relative_to(results).parts[:-1]
            key = ("Step 2", parts[-1], "") if stage == "Step 2" else (parts[1], parts[2], parts[3])
            try:
                frame = read_history(path)
            except ValueError as error:
                found.missing.append(f"training curve: {error}")
                continue
            if len(frame):
                runs[key] = frame
        if runs:
            found.histories[stage] = runs
        else:
            found.missing.append(f"training curves of {stage}: no history.jsonl under {results / pattern}")


def _examples(folder: Path, found: Findings) -> None:
    """Example clips of the proposed students; of whatever there is where they are not."""
    paths = sorted(folder.rglob("*examples*.npz"))
    best = [path for path in paths if path.parent.name == "students" and path.name.startswith("proposed.")]
    for path in best or paths[:1]:
        try:
            found.examples.append(read_examples(path))
        except (KeyError, ValueError, OSError) as error:
            found.missing.append(f"example clips: {path} is unreadable ({error})")
    if not found.examples:
        found.missing.append(f"example clips: no readable *examples*.npz under {folder}")


def _coverage(data: Path, found: Findings) -> None:
    places = [data / "coverage.tsv", data / "store" / "coverage.tsv"]
    found.coverage = _csv(next((path for path in places if path.is_file()), places[0]), found, sep="\t")


def _times(folder: Path, found: Findings) -> None:
    rows = []
    for path in sorted(folder.rglob("*.tsv")):
        frame = pd.read_csv(path, sep="\t")
        if "s" not in frame:
            continue
        stage = path.relative_to(folder).parts[0].removesuffix(".tsv")
        memory = pd.to_numeric(frame["max_rss"], errors="coerce").max() if "max_rss" in frame else float("nan")
        rows.append({"stage": stage, "seconds": float(frame["s"].sum()), "memory_mb": memory})
    if rows:
        found.times = pd.DataFrame(rows)
    else:
        found.missing.append(f"time spent: no benchmark .tsv under {folder}")


def commit_of(folder: str | Path = ".") -> str:
    """The commit of the code, with a mark when files differ from it; "unknown" outside a repository."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip()
