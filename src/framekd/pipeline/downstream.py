"""Downstream tasks: what a checkpoint is worth elsewhere (Table II)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from framekd import checkpoints, tasks
from framekd.inference import default_device
from framekd.jobs import DownstreamJob
from framekd.pipeline.kept import each, give_back, keep, key


def transfer(job: DownstreamJob, *, inputs: Mapping[str, Any], out: Sequence[str]) -> None:
    """Train and score one task from one checkpoint of each model, in all modes and for all seeds or folds.

    Args:
        job: the task, and its options by model.
        inputs: `weights` and `specs` by model, and what the data follow from.
        out: tables (csv) by model; the rates that were tried are written beside each.
    """
    files = zip(job.options, inputs["weights"], inputs["specs"], out, strict=True)
    each(
        (name, partial(_transfer, job, name, {**inputs, "weights": weights, "specs": spec}, csv))
        for name, weights, spec, csv in files
    )


def _transfer(job: DownstreamJob, model: str, inputs: Mapping[str, Any], csv: str) -> None:
    options, directory = job.options[model], Path(inputs["weights"]).parent
    name = key(job, inputs, options=options, data=_listing(Path(options.data)))
    outputs: list[str | Path] = [csv, tasks.candidates_file(csv)]
    if give_back(outputs, name):
        return
    tasks.run(
        job.task,
        options,
        model,
        directory,
        checkpoint=job.checkpoint,
        modes=job.modes,
        sizes=checkpoints.read_spec(directory)["sizes"],
        out_csv=csv,
        device=default_device(),
    )
    keep(outputs, name)


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """The files of a data set, with sizes and times; not those that are decoded from them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("cache-16k"))
    return [(str(path), (about := path.stat()).st_size, about.st_mtime_ns) for path in files]
