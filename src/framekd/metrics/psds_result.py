"""What a PSDS gives: the value, the curve of each class, and the counts that explain it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PSDSResult:
    """A PSDS, with the settings and counts that explain why another one differs.

    Attributes:
        value: 0..1, under `settings`.
        per_class: {class: PSDS of that class}, without penalty.
        efpr: [limit + 1] false positives per hour.
        tpr: [classes, limit + 1] highest true-positive rate with at most that many false positives.
        common: the result on `common_clips`, if they were given.
    """

    value: float
    per_class: dict[str, float]
    settings: dict[str, Any]
    counts: dict[str, Any]
    coverage: dict[str, Any]
    merged_events: int
    ignored_events: int
    dropped_clips: tuple[str, ...]
    classes_without_truth: tuple[str, ...]
    events_per_class: dict[str, int]
    efpr: np.ndarray
    tpr: np.ndarray
    common: PSDSResult | None = None

    def at(self, alpha_st: float) -> float:
        """PSDS with another penalty for the spread between classes: 0 none, 1 DCASE's."""
        return area(self.efpr, self.tpr, self.settings["e_max"], alpha_st)

    @property
    def mean_curve(self) -> np.ndarray:
        """Effective true-positive rate [limit + 1] over `efpr`, with the result's own alpha_st."""
        alpha = self.settings["alpha_st"]
        return np.maximum(self.tpr.mean(0) - alpha * self.tpr.std(0), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """All values but the curves, ready for JSON."""
        return {
            "value": self.value,
            "with_penalty": self.at(1.0),
            "without_penalty": self.at(0.0),
            "per_class": self.per_class,
            "events_per_class": self.events_per_class,
            "settings": self.settings,
            "counts": self.counts,
            "coverage": self.coverage,
            "merged_events": self.merged_events,
            "ignored_events": self.ignored_events,
            "dropped_clips": {"count": len(self.dropped_clips), "first": list(self.dropped_clips[:5])},
            "classes_without_truth": list(self.classes_without_truth),
            "common": None if self.common is None else self.common.to_dict(),
        }

    def __str__(self) -> str:
        c, s = self.counts, self.settings
        return (
            f"PSDS {self.value:.6f} (dtc {s['dtc']}, gtc {s['gtc']}, e_max {s['e_max']}/h, alpha_st {s['alpha_st']}; "
            f"{c['clips']} clips, {c['events']} events, {c['hours']:.3f} h, {c['classes']} classes; "
            f"{len(self.dropped_clips)} clips without events left out, {self.merged_events} touching events merged)"
        )


def area(efpr: np.ndarray, tpr: np.ndarray, e_max: float, alpha_st: float) -> float:
    """Area under the mean curve of the classes, less `alpha_st` standard deviations, as a share of the whole: 0..1."""
    widths = np.diff(np.append(efpr, e_max)) / e_max
    if alpha_st == 0:
        return float((tpr @ widths).mean())
    return float(np.maximum(tpr.mean(0) - alpha_st * tpr.std(0), 0.0) @ widths)


def false_positive_limit(seconds: float, e_max: float) -> int:
    """Largest number of false positives of a class that is on the curve, in the float arithmetic of its cut-off."""
    limit = int(e_max * seconds / 3600) + 2
    while limit > 0 and limit / seconds * 3600 > e_max:
        limit -= 1
    return limit
