"""The ensemble's logits: written in one streaming pass over the clips, read by row (Sec. 3.2).

The file has the layout of the published pseudo-label file (Zenodo 14626113): ``filenames`` [clips] bytes and
``strong_logits`` [clips, classes, 250] float16, here with the class list as attributes and the clip ids beside. The
logits are one contiguous block, so that a pass writes them at their place as it goes and readers map them into memory.
"""

from framekd.ensemble.clips import ClipSoftLabels, check_kind, write_clip_logits
from framekd.ensemble.soft import SoftLabels
from framekd.ensemble.write import Member, filenames, write_ensemble

__all__ = [
    "ClipSoftLabels",
    "Member",
    "SoftLabels",
    "check_kind",
    "filenames",
    "write_clip_logits",
    "write_ensemble",
]
