"""What training and evaluation read: sets of clips, batches and loaders."""

from framekd.data.batch import Batch, concatenate
from framekd.data.clips import Arrays, ClipSet, clip_set, labelled, strong_set, weak_set
from framekd.data.cutter import Cutter
from framekd.data.gather import Draw, Mix, SoftSource
from framekd.data.loader import Loader, MixedLoader, chunks, windows

__all__ = [
    "Arrays",
    "Batch",
    "ClipSet",
    "Cutter",
    "Draw",
    "Loader",
    "Mix",
    "MixedLoader",
    "SoftSource",
    "chunks",
    "clip_set",
    "concatenate",
    "labelled",
    "strong_set",
    "weak_set",
    "windows",
]
