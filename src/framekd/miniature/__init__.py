"""The embedded miniature: small data sets of real recordings, in the forms of the real ones."""

from framekd.miniature.audioset import build_audioset
from framekd.miniature.server import serve

__all__ = ["build_audioset", "serve"]
