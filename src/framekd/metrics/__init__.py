"""Metrics of sound event detection, exact and in bounded memory. See docs/evaluation.md."""

from framekd.metrics.bootstrap import Interval, bootstrap_psds1
from framekd.metrics.cross_check import CrossCheck
from framekd.metrics.event_based import EventF1, decode_events, event_f1, intersection_f1, onset_f1, segment_f1
from framekd.metrics.filters import median_filter, window_frames
from framekd.metrics.inputs import Truth, evaluation_classes, frame_stamps, prepare_truth
from framekd.metrics.psds import PSDS, psds1
from framekd.metrics.psds_result import PSDSResult
from framekd.metrics.ranking import AUROC, MAP, SegmentAUROC, mean_average_precision, segment_auroc

__all__ = [
    "AUROC",
    "MAP",
    "PSDS",
    "CrossCheck",
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
    "segment_f1",
    "window_frames",
]
