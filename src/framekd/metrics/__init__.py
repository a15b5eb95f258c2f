"""Metrics of sound event detection: exact, in bounded memory, on all cores. See docs/evaluation.md."""

from framekd.metrics._tiles import FRAME_SECONDS, frame_stamps
from framekd.metrics.filters import median_filter, window_frames
from framekd.metrics.onset import EventF1, event_f1, onset_f1
from framekd.metrics.psds import PSDS, PSDSResult, psds1
from framekd.metrics.truth import Truth, evaluation_classes, prepare_truth

__all__ = [
    "FRAME_SECONDS",
    "PSDS",
    "EventF1",
    "PSDSResult",
    "Truth",
    "evaluation_classes",
    "event_f1",
    "frame_stamps",
    "median_filter",
    "onset_f1",
    "prepare_truth",
    "psds1",
    "window_frames",
]
