"""The ensemble: the teachers' logits averaged into one file, or a ready-made file fetched in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from framekd import checkpoints
from framekd.clip_soft_labels import check_kind, write_clip_logits
from framekd.data import chunks
from framekd.ensemble import write_ensemble
from framekd.fetch import fetch
from framekd.files import replacing
from framekd.inference import batch_logits, default_device
from framekd.jobs import EnsembleJob, SoftLabelsJob, WeakEnsembleJob
from framekd.pipeline.kept import give_back, keep, key
from framekd.pipeline.train import strong_clips, weak_clips

WEAK_BATCH = 16
"""Clips in a batch of :func:`average_clips`: four times as many take twice the memory. No key, since batches decide the
last digits, and so a change of it would train Step 2 again."""


def average(job: EnsembleJob, *, inputs: Mapping[str, Any], out: str) -> None:
    """Average the logits of all teachers (`weights` of `inputs`) on all training clips, per class and frame."""
    name = key(job, inputs)
    if give_back([out], name):
        return
    clips = strong_clips(inputs)
    members = [Path(weights).parent for weights in inputs["weights"]]
    write_ensemble(out, members, clips, classes=clips.classes, batch_size=job.batch_size, device=default_device())
    keep([out], name)


def average_clips(job: WeakEnsembleJob, *, inputs: Mapping[str, Any], out: str) -> None:
    """Average the clip logits of models trained on AudioSet Weak on all of its training clips."""
    name = key(job, inputs)
    if give_back([out], name):
        return
    clips = weak_clips(inputs)
    device = default_device()
    models = [checkpoints.load_checkpoint(Path(weights).parent)[0].to(device).eval() for weights in inputs["weights"]]
    batches = batch_logits(models, chunks(clips, WEAK_BATCH), device=device)
    mean = [sum(whole.cpu().numpy() for _, whole in found) / len(models) for _, found in batches]
    with replacing(out) as part:
        write_clip_logits(part, clips.ids, np.concatenate(mean), clips.classes)
    keep([out], name)


def fetch_soft_labels(job: SoftLabelsJob, *, out: str) -> None:
    """Fetch a ready-made file of soft labels to `out`; a broken fetch is resumed, and the sum is recorded beside."""
    path = fetch(job.url, out, sha256=job.sha256)
    check_kind(path, job.url)
    print(Path(f"{out}.sha256").read_text().strip())
