"""Every clip that the labels name, with its splits and the shard that acquires it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from framekd import config
from framekd.config import LABEL_FILES
from framekd.labels import parse_clip_id, read_strong, read_weak_segments, strong_classes
from framekd.manifest import Clip, write_clips

CLIP_MS = 10_000
STRONG = {"strong_train": "train_strong", "strong_eval": "eval_strong"}
WEAK = {"weak_balanced_train": "balanced_train", "weak_unbalanced_train": "unbalanced_train", "weak_eval": "eval"}


def shard_of(ytid: str, shards: int) -> int:
    """The shard of a video: a hash of its id, so that it never changes with the rest of the list."""
    return zlib.crc32(ytid.encode()) % shards


def plan_clips(
    labels: str | Path | Mapping[str, str | Path], audioset: config.AudioSet, out: str | Path
) -> dict[str, int]:
    """Write the table of wanted clips; returns clips per split.

    Args:
        labels: the folder of the label files, or {name: path}.
        audioset: weak (whether weak splits are wanted), weak_splits, expected_classes, download.shards.
        out: the table, sorted by id: clip_id, ytid, start_ms, end_ms, splits (strong_train, weak_eval, …), shard.
    """
    paths = {
        name: Path(labels[name]) if isinstance(labels, Mapping) else Path(labels) / file
        for name, file in LABEL_FILES.items()
    }
    strong_classes(
        paths["train_strong"], paths["eval_strong"], paths["mid_to_display_name"], expected=audioset.expected_classes
    )
    splits: dict[str, tuple[str, ...]] = {}
    ends: dict[str, int] = {}
    counts: dict[str, int] = {}
    for split, name in STRONG.items():
        clips = read_strong(paths[name]).clips
        counts[split] = len(clips)
        for clip in clips:
            splits[clip] = (*splits.get(clip, ()), split)
    if audioset.weak:
        for split, name in WEAK.items():
            if name != "eval" and name not in audioset.weak_splits:
                continue
            weak = read_weak_segments(paths[name])
            counts[split] = len(weak)
            for clip, end in zip(weak.clips, weak.end_ms.tolist()):
                splits[clip] = (*splits.get(clip, ()), split)
                ends[clip] = end
    write_clips(out, _rows(splits, ends, audioset.download.shards))
    return counts


def _rows(splits: dict[str, tuple[str, ...]], ends: dict[str, int], shards: int):
    for clip in sorted(splits):
        ytid, start = parse_clip_id(clip)
        yield Clip(clip, ytid, start, ends.get(clip, start + CLIP_MS), splits[clip], shard_of(ytid, shards))
