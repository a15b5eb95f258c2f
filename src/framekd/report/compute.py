"""What the trainings of a run cost: hours and energy from their provenance, summed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

PLACES = {
    "Step 2": "checkpoints/step2/*/spec.json",
    "search": "search/*/*/*/*/result.json",
    "teachers": "teachers/*/*/*/spec.json",
    "students": "students/*/*/*/spec.json",
}
"""Stage → where its trainings leave their provenance (of a search: the rates that were tried)."""
COLUMNS = ["stage", "device", "runs", "hours", "watt_hours"]


def costs(results: Path) -> pd.DataFrame:
    """One line per stage and device, and one per device for all stages; no line where nothing was trained.

    Columns: stage, device, runs, hours (of one GPU: two that train together for an hour are two; of a CPU: of the
    clock) and watt_hours (of GPUs, where the driver counts them; empty where it counted for none of the runs).
    """
    rows = []
    for stage, pattern in PLACES.items():
        for path in sorted(results.glob(pattern)):
            about = json.loads(path.read_text())
            row = _row(stage, about.get("provenance", about))
            if row is not None:
                rows.append(row)
    if not rows:
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.DataFrame(rows)
    both = pd.concat([frame, frame.assign(stage="all")])
    groups = both.groupby(["stage", "device"], sort=False)
    out = groups.agg(
        runs=("hours", "size"), hours=("hours", "sum"), watt_hours=("watt_hours", lambda v: v.sum(min_count=1))
    )
    return out.reset_index()[COLUMNS]


def _row(stage: str, about: Mapping[str, Any]) -> dict[str, Any] | None:
    if "hours" not in about:  # a published checkpoint, or a rate that diverged
        return None
    gpus = about.get("processes", 1) if about["device"] != "cpu" else 1
    hours, energy = about["hours"] * gpus, about.get("watt_hours", float("nan"))
    return {"stage": stage, "device": about["device"], "hours": hours, "watt_hours": energy}
