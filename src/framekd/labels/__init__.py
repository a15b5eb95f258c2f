"""AudioSet's published label files: readers, and the class lists that follow from them (Sec. 3.1).

A clip's id is ``{ytid}_{start in ms}``, also for the weak files, which have it in three columns. YouTube ids may
contain underscores and may begin with a hyphen.
"""

from framekd.labels.classes import PUBLISHED_COUNTS, ClassList, check_classes, derive_classes, known_strong, known_weak
from framekd.labels.files import (
    STRONG_HEADER,
    StrongLabels,
    WeakLabels,
    clip_id,
    parse_clip_id,
    read_display_names,
    read_strong,
    read_strong_labels,
    read_weak_classes,
    read_weak_segments,
    strong_classes,
    valid_mid,
    valid_ytid,
)

__all__ = [
    "PUBLISHED_COUNTS",
    "STRONG_HEADER",
    "ClassList",
    "StrongLabels",
    "WeakLabels",
    "check_classes",
    "clip_id",
    "derive_classes",
    "known_strong",
    "known_weak",
    "parse_clip_id",
    "read_display_names",
    "read_strong",
    "read_strong_labels",
    "read_weak_classes",
    "read_weak_segments",
    "strong_classes",
    "valid_mid",
    "valid_ytid",
]
