"""Weights in and out (being written)."""

from framekd.models.reference import load_reference

__all__ = ["load_reference"]
