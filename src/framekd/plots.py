"""Figures of an evaluation. Each function returns a matplotlib Figure; none uses pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from framekd.config import UserError
from framekd.metrics import PSDSResult


def plain(name: str) -> str:
    """A name that matplotlib shows as it is: between two dollars it would look for a formula, and fail on most."""
    return name.replace("$", r"\$")


def class_bars(result: PSDSResult, training_events: Mapping[str, int], *, labels: bool | None = None) -> Figure:
    """PSDS1 of each class as bars; above, the number of training events, in descending order.

    Args:
        result: of `psds1`.
        training_events: {class: events in the training set}.
        labels: write the class names; None: up to 60 classes.
    Raises:
        UserError: a class has no number of training events.
    """
    absent = [name for name in result.per_class if name not in training_events]
    if absent:
        raise UserError(f"There is no number of training events for class {absent[0]} ({len(absent)} classes lack it).")
    names = sorted(result.per_class, key=lambda name: (-training_events[name], name))
    places = np.arange(len(names))
    figure = Figure(figsize=(max(6.0, min(24.0, 0.25 * len(names))), 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    above.step(places, [max(training_events[name], 0.5) for name in names], where="mid", color="tab:grey")
    above.set(yscale="log", ylabel="training events")
    below.bar(places, [100 * result.per_class[name] for name in names], width=0.8, color="tab:blue")
    mean = 100 * float(np.mean(list(result.per_class.values())))
    below.axhline(mean, color="tab:orange", linewidth=1, label=f"mean {mean:.1f}")
    below.set(ylabel="PSDS1 (%)", xlim=(-0.6, len(names) - 0.4), ylim=(0, 100))
    below.legend(loc="upper right")
    if labels or (labels is None and len(names) <= 60):
        below.set_xticks(places, [plain(name) for name in names], rotation=90, fontsize=7)
    else:
        below.set_xlabel(f"{len(names)} classes by number of training events")
    figure.suptitle(_settings_line(result), fontsize=8)
    return figure


def psd_roc(results: Mapping[str, PSDSResult], classes: Sequence[str] = ()) -> Figure:
    """PSD-ROC curves: effective true-positive rate over false positives per hour. The area under a line is its PSDS.

    Args:
        results: {label: result}, a line each.
        classes: classes whose own curves are drawn too, as thin lines.
    Raises:
        UserError: there is no result, or it lacks one of the classes.
    """
    if not results:
        raise UserError("There is no result to draw.")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, (label, result) in enumerate(results.items()):
        colour, e_max = f"C{i % 10}", result.settings["e_max"]
        x = np.append(result.efpr, e_max)
        curve = result.mean_curve
        axes.step(
            x, np.append(curve, curve[-1]), where="post", color=colour, label=f"{plain(label)}: {result.value:.3f}"
        )
        rows = list(result.per_class)
        for name in classes:
            if name not in result.per_class:
                raise UserError(f"{label} has no class {name}.")
            own = result.tpr[rows.index(name)]
            axes.step(x, np.append(own, own[-1]), where="post", color=colour, linewidth=0.6, alpha=0.6)
            axes.annotate(plain(name), (e_max, own[-1]), fontsize=6, ha="right", color=colour)
    axes.set(xlabel="effective false positives per hour", ylabel="effective true-positive rate", ylim=(0, 1))
    axes.set_xlim(0, max(result.settings["e_max"] for result in results.values()))
    axes.legend(loc="lower right")
    axes.set_title(_settings_line(next(iter(results.values()))), fontsize=8)
    return figure


def _settings_line(result: PSDSResult) -> str:
    s, c = result.settings, result.counts
    return (
        f"dtc {s['dtc']}, gtc {s['gtc']}, at most {s['e_max']:g} false positives per hour, alpha_st {s['alpha_st']:g}; "
        f"{c['clips']} clips, {c['events']} events, {c['hours']:.2f} h, {c['classes']} classes"
    )
