"""PSDS1 of the authors' Step 3 checkpoints on this site's evaluation clips."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from framekd import tables
from framekd.config import UserError
from framekd.jobs import EvaluatePublishedJob
from framekd.labels import parse_clip_id, valid_ytid
from framekd.pipeline.evaluate import load_model, score_groups
from framekd.pipeline.train import Inputs, strong_clips

NO_LIST = (
    "Shared clips: no list of the authors' evaluation clips is configured; write published: {clips: FILE} with a clip "
    "a line, such as resources/eval_durations.csv of their repository."
)


def evaluate_published(job: EvaluatePublishedJob, *, inputs: Inputs, out: str) -> None:
    """Write the PSDS1 of a published model: columns model, psds1, clips, psds1_shared (0..1), clips_shared, note.

    Args:
        job: names the model.
        inputs: stores, train_strong, eval_strong, mid_to_display_name, `weights` of the model, and `clips`, at most one
            list of the authors' evaluation clips.
        out: table (csv).
    Raises:
        UserError: the model has other classes than the label files, or the list has none of the clips.
    """
    clips = strong_clips(inputs, "eval")
    groups = {"all": set(clips.ids)}
    for path in inputs["clips"]:
        groups["shared"] = shared_clips(path, clips.ids)
    found, _ = score_groups(
        [load_model(inputs["weights"], clips)],
        clips,
        groups,
        median_seconds=job.median_seconds,
        batch_size=job.batch_size,
        cross_check=job.cross_check,
    )
    row: dict[str, Any] = {"model": job.model, "psds1_shared": np.nan, "clips_shared": 0, "note": NO_LIST}
    for end, name in (("", "all"), ("_shared", "shared")):
        if name in found:
            result = found[name][0]
            row |= {f"psds1{end}": result.at(0.0), f"clips{end}": result.counts["clips"]}
    row["note"] = "" if "shared" in groups else NO_LIST
    tables.write_csv(out, pd.DataFrame([row]), digits=9)


def shared_clips(path: str | Path, ids: Iterable[str]) -> set[str]:
    """The clips among `ids` that a list names.

    Args:
        path: a clip a line: its id, its YouTube id, or a file name of either, with or without the Y in front that
            AudioSet's files often have. What follows a comma or a tab is not read.
        ids: clip ids.
    Raises:
        UserError: the list does not exist, or names none of them.
    """
    if not Path(path).is_file():
        raise UserError(f"published.clips: {path} does not exist")
    names = {re.split(r"[,\t]", line, maxsplit=1)[0].strip() for line in Path(path).read_text().splitlines()}
    videos = {video for name in names if (video := _video(name))}
    found = {clip for clip in ids if parse_clip_id(clip)[0] in videos}
    if not found:
        raise UserError(
            f"published.clips: {path} names none of this site's evaluation clips; expected a YouTube id, a clip id or "
            "a file name of one a line"
        )
    return found


def _video(name: str) -> str | None:
    """The YouTube id in an entry of a list. AudioSet has at most one clip of a video."""
    stem = re.sub(r"\.\w{2,4}$", "", name)
    for text in (stem, stem.removeprefix("Y")):
        if valid_ytid(text):
            return text
        try:
            return parse_clip_id(text)[0]
        except ValueError:
            continue
    return None
