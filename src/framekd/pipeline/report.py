"""The report of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framekd.jobs import ReportJob
from framekd.report import ReportInputs, write_report


def report(job: ReportJob, *, inputs: Mapping[str, Any], out: Mapping[str, Any]) -> None:
    """Write the page, the cost of the trainings and the orderings; print what is missing in it."""
    scored = zip(job.evaluations, inputs["evaluations"], inputs["per_class"], inputs["examples"], strict=True)
    files = ReportInputs(
        tables={name: Path(path) for name, path in zip(job.tables, inputs["tables"], strict=True)},
        evaluations=[(*name, Path(table), Path(classes), Path(clips)) for name, table, classes, clips in scored],
        histories=[(*name, Path(path)) for name, path in zip(job.histories, inputs["histories"], strict=True)],
        specs=[(stage, Path(path)) for stage, path in zip(job.costs, inputs["costs"], strict=True)],
        coverage=[Path(path) for path in inputs["coverage"]],
        benchmarks=[(stage, Path(path)) for stage, path in job.benchmarks],
    )
    orderings = next(iter(out["orderings"]), None)
    missing = write_report(
        files,
        html=Path(out["html"]),
        compute=Path(out["compute"]),
        orderings=Path(orderings) if orderings else None,
        config=job.config,
    )
    print(*missing, sep="\n")
