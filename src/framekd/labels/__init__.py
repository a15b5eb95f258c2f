"""AudioSet's published label files: strict readers, and the class lists that follow from them (Sec. 3.1).

A clip is named ``{ytid}_{start in ms}`` everywhere, in the strong files as in the weak ones (which spell the same thing
in three columns). YouTube ids may hold underscores and may begin with a hyphen.
"""

from framekd.labels.classes import PUBLISHED_COUNTS, ClassList, check_classes, derive_classes, known_strong, known_weak
from framekd.labels.files import (
    STRONG_HEADER,
    StrongLabels,
    WeakLabels,
    read_display_names,
    read_strong,
    read_strong_labels,
    read_weak_classes,
    read_weak_segments,
    strong_classes,
)
from framekd.labels.ids import clip_id, parse_clip_id, valid_mid, valid_ytid

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
