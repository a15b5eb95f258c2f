"""Metrics of sound event detection: exact, in bounded memory, on all cores. See docs/evaluation.md."""

from framekd.metrics._tiles import FRAME_SECONDS, frame_stamps
from framekd.metrics.bootstrap import Interval, bootstrap_psds1
from framekd.metrics.decode import decode_events
from framekd.metrics.filters import median_filter, window_frames
from framekd.metrics.intersection import intersection_f1
from framekd.metrics.onset import EventF1, event_f1, onset_f1
from framekd.metrics.psds import PSDS, PSDSResult, psds1
from framekd.metrics.segments import AUROC, SegmentAUROC, segment_auroc
from framekd.metrics.tagging import MAP, mean_average_precision
from framekd.metrics.truth import Truth, evaluation_classes, prepare_truth

__all__ = [
    "AUROC",
    "FRAME_SECONDS",
    "MAP",
    "PSDS",
    "EventF1",
    "Interval",
    "PSDSResult",
    "SegmentAUROC",
    "Truth",
    "bootstrap_psds1",
    "decode_events",
    "evaluation_classes",
    "event_f1",
    "frame_stamps",
    "intersection_f1",
    "mean_average_precision",
    "median_filter",
    "onset_f1",
    "prepare_truth",
    "psds1",
    "segment_auroc",
    "window_frames",
]
