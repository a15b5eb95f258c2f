"""The data of the downstream tasks: made from published files or taken as they are, counted, and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from framekd import sets
from framekd.config import Download, UserError
from framekd.files import write_json
from framekd.jobs import TaskDataJob


def prepare(job: TaskDataJob, *, out: Mapping[str, str]) -> None:
    """Make or take the folder of a task, and write what it has.

    Args:
        job: the task, its folder, and what it is made from.
        out: `state` (JSON: numbers, sums of the lists and of what it was made from) and `counts` (TSV: clips and events
            by split and class).
    Raises:
        UserError: the data cannot be had, are broken, or differ from the published ones.
    """
    sources: list[dict[str, str]] = []
    if job.fetch is not None:
        found, sources = sets.make(
            job.task,
            job.fetch,
            job.folder,
            downloads=job.downloads,
            work=job.work,
            public=job.public,
            wanted=job.counts,
            min_share=job.min_share,
            download=job.download or Download(),
            progress=_print_progress,
        )
    else:
        if not Path(job.folder).is_dir():
            raise UserError(
                f"{job.folder}: no such folder with the data of {job.task}; docs/downstream.md has its layout"
            )
        found = sets.count(job.task, job.folder, seconds=job.counts.get("seconds"), public=job.public)
        sets.compare(job.task, job.folder, found, job.counts, job.min_share)
    for sentence in found.notices:
        print(sentence)
    state = {
        "task": job.task,
        "made_from": sources,
        "numbers": found.numbers,
        "with_audio": {kind: there for kind, there, _ in found.shares},
        "notices": found.notices,
        "sha256": found.lists,
    }
    print(json.dumps(found.numbers))
    sets.write_counts(out["counts"], found)
    write_json(out["state"], state)


def _print_progress(settled: int, total: int) -> None:
    if settled % 50 == 0 or settled == total:
        print(f"{settled} of {total} clips", flush=True)
