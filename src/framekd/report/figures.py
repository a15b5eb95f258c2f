"""Figures of the report as SVG text in the page's light or dark colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from framekd.events import active_runs
from framekd.examples import Example, Examples
from framekd.units import SAMPLE_RATE

INK = "#123456"  # `_svg` replaces it by the text colour of the page
FAINT = "#654321"  # `_svg` replaces it by the line colour of the page
COLOURS = ("#2f6fbb", "#d1782a", "#2f9e6e", "#b0468f", "#7a6bd1", "#8a8f3a", "#c2483f")
STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "framekd",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.prop_cycle": cycler(color=COLOURS),
    "lines.linewidth": 1.3,
}


def _svg(figure: Figure, label: str, *, tight: bool = True) -> str:
    """The figure as an inline SVG element in the page's colours. `label` is for screen readers."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    box = {"bbox_inches": "tight", "pad_inches": 0.02} if tight else {}
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, **box)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    clean = label.replace("&", "and").replace("<", "").replace('"', "'")
    return text.replace("<svg", f'<svg class="figure" role="img" aria-label="{clean}"', 1)


def _grid(rows: int, columns: int, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def setting_dots(frame: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Table I as dots: a column per model, a row per setting; rings are the published values."""
    with matplotlib.rc_context(STYLE):
        models, settings = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["setting"]))
        figure, axes = _grid(1, len(models), 1.9, 0.34 * len(settings) + 0.7, sharey=True, sharex=True)
        for axis, model in zip(axes[0], models):
            part = frame[frame["model"] == model].set_index("setting").reindex(settings)
            height = np.arange(len(settings))
            spread = part["std"].fillna(0.0)
            axis.errorbar(part["mean"], height, xerr=spread, fmt="o", color=COLOURS[0], ms=5, label="this run")
            axis.plot(part["published"], height, "o", mfc="none", mec=COLOURS[1], ms=6, label="published")
            axis.set_title(model)
            axis.set_yticks(height, [titles.get(name, name) for name in settings])
            axis.set_ylim(len(settings) - 0.5, -0.5)
            axis.set_xlim(left=0)
            axis.grid(axis="x", color=FAINT, lw=0.5)
        figure.supxlabel("PSDS1 / %", fontsize=8)
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        return _svg(figure, "PSDS1 per setting and model, this run and published")


def class_bars(frame: pd.DataFrame, *, title: str, most: int = 60) -> str:
    """Mean PSDS1 per class, highest first. Columns of `frame`: class, psds1 (0..1). Over `most` classes: both ends."""
    with matplotlib.rc_context(STYLE):
        means = frame.groupby("class")["psds1"].mean().mul(100).sort_values(ascending=False, kind="stable")
        if len(means) > most:
            means = pd.concat([means.head(most // 2), means.tail(most // 2)])
        figure, axes = _grid(1, 1, 6.4, 0.19 * len(means) + 0.6)
        axis = axes[0][0]
        axis.barh(np.arange(len(means)), means, color=COLOURS[0], height=0.7)
        axis.set_yticks(np.arange(len(means)), list(means.index))
        axis.set_ylim(len(means) - 0.4, -0.6)
        axis.set_xlabel("PSDS1 / %, mean over models and seeds")
        return _svg(figure, f"PSDS1 per class, {title}")


def _thin(values: pd.Series, most: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A long curve, averaged over at most `most` stretches."""
    parts = np.array_split(np.arange(len(values)), min(most, len(values)))
    steps, numbers = values.index.to_numpy(float), values.to_numpy(float)
    return np.array([steps[p].mean() for p in parts]), np.array([np.nanmean(numbers[p]) for p in parts])


def curves(histories: Mapping[tuple[str, str, str], pd.DataFrame], *, column: str, label: str) -> str:
    """Grid of plots: a row per setting, a column per model, a line per seed; histories by (setting, model, seed)."""
    with matplotlib.rc_context(STYLE):
        settings = list(dict.fromkeys(key[0] for key in histories))
        models = list(dict.fromkeys(key[1] for key in histories))
        figure, axes = _grid(len(settings), len(models), 1.9, 1.25, sharex="row", sharey="row")
        for row, setting in zip(axes, settings):
            for axis, model in zip(row, models):
                for (where, who, _), frame in histories.items():
                    if where == setting and who == model and column in frame:
                        series = frame[column].dropna()
                        if len(series):
                            axis.plot(*_thin(series))
                axis.set_title(model if setting == settings[0] else "")
                axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                axis.grid(color=FAINT, lw=0.4)
            row[0].set_ylabel(setting)
        figure.supxlabel("step", fontsize=8)
        return _svg(figure, label)


def time_bars(seconds: pd.Series, *, title: str) -> str:
    """Job time per stage, longest first."""
    with matplotlib.rc_context(STYLE):
        minutes = seconds.sort_values(ascending=False, kind="stable") / 60
        figure, axes = _grid(1, 1, 6.4, 0.24 * len(minutes) + 0.6)
        axis = axes[0][0]
        axis.barh(np.arange(len(minutes)), minutes, color=COLOURS[2], height=0.7)
        for place, value in enumerate(minutes):
            axis.text(value, place, f" {value:.1f}", va="center", fontsize=8)
        axis.set_yticks(np.arange(len(minutes)), [str(name) for name in minutes.index])
        axis.set_ylim(len(minutes) - 0.4, -0.6)
        axis.set_xlabel("minutes of job time, summed over jobs")
        return _svg(figure, title)


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log-mel image [64, frames] in dB of int16 audio, for display only."""
    import torch
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    mel = MelSpectrogram(SAMPLE_RATE, n_fft=512, hop_length=320, n_mels=64)
    return AmplitudeToDB(top_db=70)(mel(torch.from_numpy(waveform.astype(np.float32) / 32768))).numpy()


def short(name: str, most: int = 22) -> str:
    """A class name that fits beside a plot: its first synonym, cut to `most` characters."""
    first = name.split(", ")[0]
    return first if len(first) <= most else first[: most - 1] + "…"


def shown_classes(clip: Example, classes: Sequence[str], *, threshold: float, most: int = 6) -> list[str]:
    """Classes to draw: those with true events first, then those with the highest scores."""
    true = list(dict.fromkeys(name for _, _, name in sorted(clip.events) if name in classes))
    peaks = clip.scores.max(axis=1)
    others = [classes[i] for i in np.argsort(-peaks, kind="stable") if classes[i] not in true]
    strong = [name for name in others if peaks[classes.index(name)] >= threshold]
    return (true + strong)[:most] or others[:2]


def timeline(clip: Example, examples: Examples, *, threshold: float) -> str:
    """Spectrogram of a clip; below, per class, the score (line), true events (blue) and detections (orange)."""
    with matplotlib.rc_context(STYLE):
        names = shown_classes(clip, examples.classes, threshold=threshold)
        seconds = len(clip.waveform) / SAMPLE_RATE
        height = 1.6 + 0.42 * len(names)
        figure = Figure(figsize=(9.2, height))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.25, 0.42 * len(names)])
        figure.subplots_adjust(
            left=0.16, right=0.99, top=0.99, bottom=0.45 / height, hspace=0.06
        )  # equal margins, so that all clips line up
        image = _log_mel(clip.waveform)
        top.imshow(image, aspect="auto", origin="lower", cmap="magma", extent=(0, seconds, 0, 64))
        top.set_yticks([])
        top.set_ylabel("mel")
        top.tick_params(labelbottom=False)
        for place, name in enumerate(names):
            base = len(names) - 1 - place
            score = clip.scores[examples.classes.index(name)]
            time = (np.arange(len(score)) + 0.5) * examples.frame_seconds
            for on, off, label in clip.events:
                if label == name:
                    bottom.broken_barh([(on, max(off - on, 0.02))], (base, 0.9), color=COLOURS[0], alpha=0.3, lw=0)
            _, begin, end = active_runs((score >= threshold)[:, None])
            spans = np.stack([begin, end - begin], axis=1) * examples.frame_seconds
            bottom.broken_barh(spans, (base, 0.13), color=COLOURS[1], lw=0)
            bottom.plot(time, base + 0.9 * score, color=INK, lw=0.9)
        bottom.set_yticks(np.arange(len(names)) + 0.45, [short(name) for name in names[::-1]])
        bottom.tick_params(axis="y", length=0)
        bottom.set_ylim(0, len(names))
        bottom.set_xlim(0, seconds)
        for base in range(1, len(names)):
            bottom.axhline(base - 0.03, color=FAINT, lw=0.5)
        bottom.set_xlabel("seconds")
        return _svg(figure, f"scores and events of clip {clip.id}", tight=False)
