"""The paper's tables and significance tests, from the scores of a run."""

from __future__ import annotations

from collections.abc import Sequence

from framekd import tables
from framekd.jobs import SignificanceJob, TableJob


def write_table(job: TableJob, *, scores: Sequence[str], csv: str) -> None:
    """Write a table to `csv`, with .md and .tex beside it. `scores` has a file per setting (Step 2: per
    model; Table II: per downstream job)."""
    if job.table in ("table2", "step2"):
        by_file = {"table2": tables.write_table2, "step2": tables.write_step2}[job.table]
        by_file(scores, csv, miniature=job.miniature)
        return
    write = {"table1": tables.write_table1, "teachers": tables.write_teachers}[job.table]
    write(dict(zip(job.settings, scores, strict=True)), csv, miniature=job.miniature)


def write_significance(job: SignificanceJob, *, scores: Sequence[str], csv: str) -> None:
    """Write the significance tests between the settings to `csv`."""
    tables.write_significance(
        dict(zip(job.settings, scores, strict=True)),
        csv,
        alpha=job.alpha,
        comparisons=job.comparisons,
        epsilon=job.epsilon,
    )
