"""Write what README.md and docs/ show of the last demo: the results table, docs/demo.md and docs/clip.png.

make demo && .venv/bin/python tools/readme.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.signal import spectrogram

from framekd.checkpoints import load_checkpoint
from framekd.events import active_runs
from framekd.examples import Example, read_examples
from framekd.files import replacing, write_text
from framekd.inference import logits
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
TRUE, DETECTED, SCORE, ENSEMBLE = "#2b8a57", "#d1641f", "#b7c3d3", "#4a5a8a"
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


def scores_of(checkpoints: Sequence[Path], waveform: np.ndarray) -> np.ndarray:
    """Probabilities [classes, frames] of models whose logits are averaged, for an int16 waveform [samples]."""
    wave, found = torch.from_numpy(waveform[None].astype(np.float32) / 32768), []
    for folder in checkpoints:
        model, _ = load_checkpoint(folder)
        with torch.inference_mode():
            found.append(logits(model, model.frontend(wave))[0][0])
    return torch.stack(found).mean(0).sigmoid().numpy()


def clip_figure(clip: Example, ensemble: np.ndarray, classes: list[str], threshold: float, student: str) -> Figure:
    """Spectrogram, true events, scores of the ensemble and of a student, and the student's detections in one clip.

    Args:
        clip: with the student's scores.
        ensemble: scores of the ensemble, [classes, frames].
        threshold: of the detections.
        student: the student's name.
    """
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
    above.set_title("one evaluation clip of the demo", fontsize=9, loc="left")

    stamps = np.arange(clip.scores.shape[1]) / FRAME_RATE
    own, theirs = (median_filter(scores.T, seconds=MEDIAN_SECONDS) for scores in (clip.scores, ensemble))
    for row, name in enumerate(names):  # from the top of a row: true events, detections, scores from 0 to 1
        for events, top, colour in ((clip.events, row - 0.44, TRUE), (found, row - 0.24, DETECTED)):
            spans = [(onset, offset - onset) for onset, offset, label in events if label == name]
            below.broken_barh(spans, (top, 0.17), facecolors=colour)
        place = classes.index(name)
        below.fill_between(stamps, row + 0.44, row + 0.44 - 0.46 * own[:, place], color=SCORE, step="post", linewidth=0)
        below.step(stamps, row + 0.44 - 0.46 * theirs[:, place], color=ENSEMBLE, where="post", linewidth=1.1)
    below.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, len(wave) / SAMPLE_RATE), xlabel="seconds")
    below.set_yticks(range(len(names)), [name.split(",")[0] for name in names])
    below.grid(axis="x", color="#e4e8ee", linewidth=0.6)
    below.set_axisbelow(True)
    for colour, label in (
        (TRUE, "true"),
        (DETECTED, f"detected by a student, {student} (score > {threshold:g})"),
        (SCORE, "its score, 0 to 1"),
    ):
        below.broken_barh([], (0, 0), facecolors=colour, label=label)
    below.plot([], color=ENSEMBLE, label="the ensemble's score")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower right", ncols=4, frameon=False, fontsize=8)
    return figure


def demo_figure(results: Path, table: pd.DataFrame, threshold: float) -> Figure:
    """The figure of the example clip that the ensemble and the best student detect best."""
    proposed = table[(table["setting"] == "proposed") & (table["model"] != "average")]
    student = proposed.loc[proposed["mean"].idxmax(), "model"]
    (path, *_) = sorted((results / "evaluation/students/proposed").glob("*/seed1.examples.npz"))
    examples = read_examples(path)  # the same clips for each model
    teachers = sorted(path.parent for path in (results / "teachers/proposed").glob("*/seed*/spec.json"))
    drawn = []
    for clip in examples.clips:
        theirs = replace(clip, scores=scores_of(teachers, clip.waveform))
        own = replace(clip, scores=scores_of([results / "students/proposed" / student / "seed1"], clip.waveform))
        fit = sum(agreement(one, examples.classes, threshold) for one in (theirs, own))
        drawn.append((fit, own, theirs.scores))
    _, clip, ensemble = max(drawn, key=lambda found: found[0])
    return clip_figure(clip, ensemble, examples.classes, threshold, student)


def main() -> None:
    """Write README.md's table, docs/demo.md and docs/clip.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "demo", help="a finished demo")
    parser.add_argument("--threshold", type=float, default=0.3, help="of the detections in docs/clip.png")
    given = parser.parse_args()

    readme = ROOT / "README.md"
    table = pd.read_csv(given.results / "table1.csv")
    block = f"<!-- demo -->\n{results_table(table)}\n<!-- /demo -->"
    text, count = re.subn(r"<!-- demo -->.*<!-- /demo -->", lambda _: block, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        raise SystemExit("README.md: expected one block <!-- demo --> … <!-- /demo -->; add it where the table belongs")
    write_text(readme, text)

    tables = "\n\n".join(
        (given.results / f"{name}.md").read_text().strip() for name in ("table1", "teachers", "table2")
    )
    orderings = orderings_table(pd.read_csv(given.results / "orderings.csv"))
    write_text(ROOT / "docs" / "demo.md", DEMO_PAGE.format(tables=tables, orderings=orderings))

    with replacing(ROOT / "docs" / "clip.png") as aside:
        demo_figure(given.results, table, given.threshold).savefig(aside, dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
