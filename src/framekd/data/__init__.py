"""What training and evaluation read: sets of clips, batches, and loaders that are pure functions of (seed, step)."""

from framekd.data.batch import Batch, concatenate
from framekd.data.clips import Arrays, ClipSet, clip_set, file_set, labelled, strong_set, weak_set
from framekd.data.cutter import Cutter, SoftSource
from framekd.data.loader import Loader, MixedLoader, chunks, windows

__all__ = [
    "Arrays",
    "Batch",
    "ClipSet",
    "Cutter",
    "Loader",
    "MixedLoader",
    "SoftSource",
    "chunks",
    "clip_set",
    "concatenate",
    "file_set",
    "labelled",
    "strong_set",
    "weak_set",
    "windows",
]
