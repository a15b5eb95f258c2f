"""The embedded miniature: small data sets made of real recordings, in the layouts of the real data sets."""

from framekd.miniature.audioset import build_audioset
from framekd.miniature.downstream import build_dcase16, build_desed, build_maestro
from framekd.miniature.server import serve

__all__ = ["build_audioset", "build_dcase16", "build_desed", "build_maestro", "serve"]
