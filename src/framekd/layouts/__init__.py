"""How the folders of the downstream tasks are laid out: their lists, and the files that each must have."""

from framekd.layouts.folders import MARK, Events, by_hand, find, inside, lists, made_here, missing

__all__ = ["MARK", "Events", "by_hand", "find", "inside", "lists", "made_here", "missing"]
