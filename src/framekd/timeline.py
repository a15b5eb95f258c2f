"""A picture of what was detected in a recording: spectrogram, scores and events on one time axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from framekd.overview import Overview
from framekd.predict import Prediction


def detection_timeline(
    found: Prediction,
    overview: Overview,
    classes: Sequence[str],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    top: int = 8,
    title: str = "",
) -> Figure:
    """What was detected in a recording of any length: the spectrogram, then per class its score, threshold and events.

    Args:
        found: the detected events.
        overview: of the same recording.
        classes: names of the columns of the overview's scores.
        threshold: one for all classes, or {class: threshold} with 0.5 for the others.
        top: largest number of classes: those with events, the longest total first, then those with the highest scores.
        title: of the figure.
    """
    events = found.events
    lengths = (events.offset - events.onset).groupby(events.event_label).sum().sort_values(ascending=False)
    by_peak = [name for name in found.peaks.event_label if name not in lengths.index]
    shown = [*lengths.index, *by_peak][:top]
    levels, level_step = overview.spectrogram()
    scores, step = overview.scores()
    figure = Figure(figsize=(10.0, 1.9 + 0.5 * len(shown)), layout="constrained")
    first, *rows = figure.subplots(1 + len(shown), 1, sharex=True, height_ratios=[3, *[1] * len(shown)])
    first.imshow(
        levels.T,
        origin="lower",
        aspect="auto",
        extent=(0, len(levels) * level_step, 0, levels.shape[1]),
        cmap="magma",
        vmin=levels.max() - 80,
        interpolation="nearest",
    )
    first.set(yticks=[], ylabel="spectrogram\n(40 Hz to 8 kHz)")
    edges = np.arange(len(scores) + 1) * step
    handles: list[Any] = []
    for axes, name in zip(rows, shown):
        value = threshold.get(name, 0.5) if isinstance(threshold, Mapping) else threshold
        area = axes.stairs(scores[:, list(classes).index(name)], edges, fill=True, color="tab:blue", alpha=0.75)
        limit = axes.axhline(value, color="0.35", linewidth=0.8, linestyle="--")
        own = events[events.event_label == name]
        least = found.seconds / 800  # two pixels
        spans = [(e.onset, max(e.offset - e.onset, least)) for e in own.itertuples()]
        bars = axes.broken_barh(spans, (-0.32, 0.24), facecolors="tab:orange", linewidth=0)
        handles = [area, limit, bars]
        axes.set(ylim=(-0.36, 1.05), yticks=[0, 1])
        axes.tick_params(labelsize=7)
        # Names are no formulas, also between two dollars.
        axes.set_ylabel(f"{name} ({len(own)})", rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    first.set_xlim(0, max(found.seconds, 1 / 25))
    if found.seconds > 120:
        rows[-1].xaxis.set_major_formatter(lambda x, _: f"{int(x) // 60}:{int(x) % 60:02d}")
    rows[-1].set_xlabel("minutes:seconds" if found.seconds > 120 else "seconds")
    less = f", {len(shown)} shown" if len(lengths) > len(shown) else ""
    labels = ["score", "threshold", f"detected event ({len(events)} in {len(lengths)} classes{less})"]
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    if title:
        first.set_title(title, fontsize=9, loc="left", parse_math=False)
    return figure
