"""Write what README.md and docs/ show of the last demo: the results table, docs/demo.md and docs/clip.png.

make demo && .venv/bin/python tools/readme.py
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.signal import spectrogram

from framekd.events import active_runs
from framekd.examples import Example, Examples, read_examples
from framekd.files import replacing, write_text
from framekd.metrics import median_filter
from framekd.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "li_et_al": "Li et al. (no Step 2, no KD)",
    "proposed": "**proposed**",
    "without_kd": "without KD",
    "without_rnn": "without RNN in the teachers",
    "without_step2": "without Step 2",
}
MEDIAN_SECONDS = 0.48
TRUE, DETECTED, SCORE = "#2b8a57", "#d1641f", "#b7c3d3"
DEMO_PAGE = """# Results of the demo

`make demo` trains small models on an embedded miniature of real recordings. The numbers show that every stage works.
They are not comparable with the paper's, which stand beside them in each cell with the difference. Written by
`tools/readme.py` from `results/demo`; `results/demo/report.html` shows the same with figures.

{tables}

## Does the demo show the paper's orderings?

An ordering is shown if its gap is larger than the spread over the seeds (MAESTRO: folds). In percentage points,
averaged over the five models:

{orderings}
"""


def results_table(table: pd.DataFrame) -> str:
    """Markdown with a row per setting and a column per model: mean PSDS1 in percent, then the paper's own row.

    Args:
        table: table1.csv with columns setting, model, mean, published.
    """
    models, settings = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["setting"]))
    means = table.pivot(index="setting", columns="model", values="mean")
    rows = [[TITLES.get(name, name), *(f"{means.loc[name, model]:.1f}" for model in models)] for name in settings]
    if "proposed" in settings:
        published = table.pivot(index="setting", columns="model", values="published")
        rows.append(["*the paper: proposed*", *(f"*{published.loc['proposed', model]:.1f}*" for model in models)])
    return _markdown(["PSDS1, percent", *models], rows)


def orderings_table(orderings: pd.DataFrame) -> str:
    """Markdown with a row per ordering, averages over models only.

    Args:
        orderings: orderings.csv with columns ordering, stage, model, gap, spread, published_gap, verdict.
    """
    average = orderings[orderings["model"] == "average"]
    rows = [
        [
            *(row.ordering, row.stage, f"{row.gap:.1f}", f"{row.spread:.1f}"),
            *("–" if np.isnan(row.published_gap) else f"{row.published_gap:.1f}", row.verdict),
        ]
        for row in average.itertuples()
    ]
    return _markdown(["ordering", "of", "gap", "spread", "published gap", "in this run"], rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def detections(clip: Example, classes: list[str], threshold: float) -> list[tuple[float, float, str]]:
    """Events (onset, offset, class) in seconds: median-filtered scores above the threshold."""
    active = median_filter(clip.scores.T, seconds=MEDIAN_SECONDS) > threshold
    runs = zip(*(column.tolist() for column in active_runs(active)), strict=True)
    return [(begin / FRAME_RATE, end / FRAME_RATE, classes[k]) for k, begin, end in runs]


def agreement(clip: Example, classes: list[str], threshold: float) -> float:
    """F-measure of detected against true (class, frame) pairs, 0 to 1; almost 0 without any hit."""
    truth, found = np.zeros(clip.scores.shape, bool), np.zeros(clip.scores.shape, bool)
    for target, events in ((truth, clip.events), (found, detections(clip, classes, threshold))):
        for onset, offset, name in events:
            target[classes.index(name), int(onset * FRAME_RATE) : int(np.ceil(offset * FRAME_RATE))] = True
    if not (truth & found).any():  # rank clips without a hit below all others, by how far the true scores stand out
        return float(clip.scores[truth].mean() / clip.scores.mean()) / 1e6 if truth.any() else 0.0
    return 2 * float((truth & found).sum()) / int(truth.sum() + found.sum())


def clip_figure(examples: Examples, threshold: float) -> Figure:
    """Spectrogram, true events, scores and detections of the clip whose detections agree best with the truth."""
    classes = examples.classes
    clip = max(examples.clips, key=lambda clip: agreement(clip, classes, threshold))
    found = detections(clip, classes, threshold)
    names = list(dict.fromkeys(name for *_, name in [*sorted(clip.events), *sorted(found)]))
    figure = Figure(figsize=(9.0, 2.3 + 0.5 * len(names)), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 0.5 * len(names)])

    wave = clip.waveform / 32768
    bins, times, power = spectrogram(wave, SAMPLE_RATE, nperseg=1024, noverlap=1024 - FRAME_SAMPLES)
    decibels = 10 * np.log10(power + 1e-10)
    top = decibels.max()
    above.pcolormesh(times, bins / 1000, decibels, vmin=top - 70, vmax=top, cmap="magma", rasterized=True)
    above.set_ylabel("kHz")
    above.set_title(f"one evaluation clip of the demo ({examples.title})", fontsize=9, loc="left")

    stamps = np.arange(clip.scores.shape[1]) / FRAME_RATE
    scores = median_filter(clip.scores.T, seconds=MEDIAN_SECONDS)
    for row, name in enumerate(names):  # from the top of a row: true events, detections, scores from 0 to 1
        for events, top, colour in ((clip.events, row - 0.44, TRUE), (found, row - 0.24, DETECTED)):
            spans = [(onset, offset - onset) for onset, offset, label in events if label == name]
            below.broken_barh(spans, (top, 0.17), facecolors=colour)
        height = row + 0.44 - 0.46 * scores[:, classes.index(name)]
        below.fill_between(stamps, row + 0.44, height, color=SCORE, step="post", linewidth=0)
    below.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, len(wave) / SAMPLE_RATE), xlabel="seconds")
    below.set_yticks(range(len(names)), [name.split(",")[0] for name in names])
    below.grid(axis="x", color="#e4e8ee", linewidth=0.6)
    below.set_axisbelow(True)
    for colour, label in ((TRUE, "true"), (DETECTED, f"detected (score > {threshold:g})"), (SCORE, "score, 0 to 1")):
        below.broken_barh([], (0, 0), facecolors=colour, label=label)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Write README.md's table, docs/demo.md and docs/clip.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "demo", help="a finished demo")
    parser.add_argument("--threshold", type=float, default=0.5, help="of the detections in docs/clip.png")
    given = parser.parse_args()

    readme = ROOT / "README.md"
    block = f"<!-- demo -->\n{results_table(pd.read_csv(given.results / 'table1.csv'))}\n<!-- /demo -->"
    text, count = re.subn(r"<!-- demo -->.*<!-- /demo -->", lambda _: block, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit("README.md: expected one block <!-- demo --> … <!-- /demo -->; add it where the table belongs")
    write_text(readme, text)

    tables = "\n\n".join(
        (given.results / f"{name}.md").read_text().strip() for name in ("table1", "teachers", "table2")
    )
    orderings = orderings_table(pd.read_csv(given.results / "orderings.csv"))
    write_text(ROOT / "docs" / "demo.md", DEMO_PAGE.format(tables=tables, orderings=orderings))

    examples = read_examples(given.results / "evaluation" / "students" / "proposed" / "ATST-F" / "seed1.examples.npz")
    with replacing(ROOT / "docs" / "clip.png") as aside:
        clip_figure(examples, given.threshold).savefig(aside, dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
