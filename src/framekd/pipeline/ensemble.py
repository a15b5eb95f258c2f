"""The ensemble: the teachers' logits averaged into one file, or a ready-made file fetched in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from framekd.config import UserError
from framekd.ensemble import write_ensemble
from framekd.fetch import fetch
from framekd.inference import default_device
from framekd.jobs import EnsembleJob, SoftLabelsJob
from framekd.pipeline.train import strong_clips


def average(job: EnsembleJob, *, inputs: Mapping[str, Any], out: str) -> None:
    """Average the logits of all teachers (`weights` of `inputs`) on all training clips, per class and frame."""
    clips = strong_clips(inputs)
    members = [Path(weights).parent for weights in inputs["weights"]]
    write_ensemble(out, members, clips, classes=clips.classes, batch_size=job.batch_size, device=default_device())


def fetch_soft_labels(job: SoftLabelsJob, *, out: str) -> None:
    """Fetch a ready-made file of soft labels to `out`; a broken fetch is resumed, and the sum is recorded beside."""
    path = fetch(job.url, out, sha256=job.sha256)
    if not h5py.is_hdf5(path):
        raise UserError(f"{job.url} is no HDF5 file; write the address of the file itself, not of a page")
    print(Path(f"{out}.sha256").read_text().strip())
