"""The data of the downstream tasks: made from published files, and counted."""

from framekd.sets.build import make
from framekd.sets.count import Counted, compare, count, write_counts

__all__ = ["Counted", "compare", "count", "make", "write_counts"]
