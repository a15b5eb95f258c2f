"""The paper's tables and significance tests, from the scores of a run."""

from __future__ import annotations

from collections.abc import Sequence

from framekd import tables
from framekd.jobs import SignificanceJob, TableJob
from framekd.pipeline.partial import remove_partial_table


def write_table(job: TableJob, *, scores: Sequence[str], csv: str) -> None:
    """Write a table to `csv`, with .md and .tex beside it, and remove what was written while it was not complete.

    Args:
        job: which table, of which settings.
        scores: as many files for each setting, one setting after the other; of Step 2 and the published
            models a file per model, of Table II
            one per downstream job.
        csv: the table.
    """
    by_setting = job.table in ("table1", "teachers")
    found = _by_setting(job.settings, scores) if by_setting else scores
    tables.write_table(job.table, found, csv, miniature=job.miniature)
    remove_partial_table(csv)


def _by_setting(settings: Sequence[str], scores: Sequence[str]) -> dict[str, Sequence[str]]:
    """Setting → its files; each setting has as many."""
    each = len(scores) // len(settings)
    return {name: scores[i * each : (i + 1) * each] for i, name in enumerate(settings)}


def write_significance(job: SignificanceJob, *, scores: Sequence[str], csv: str) -> None:
    """Write the significance tests between the settings to `csv`."""
    tables.write_significance(
        _by_setting(job.settings, scores),
        csv,
        alpha=job.alpha,
        comparisons=job.comparisons,
        epsilon=job.epsilon,
    )
