"""The embedded miniature: small data sets of real recordings, in the forms of the real ones."""

from framekd.miniature.audioset import build_audioset
from framekd.miniature.downstream import build_dcase16, build_desed
from framekd.miniature.piano import build_maestro
from framekd.miniature.server import serve

__all__ = ["build_audioset", "build_dcase16", "build_desed", "build_maestro", "serve"]
