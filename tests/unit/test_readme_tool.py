"""tools/readme.py: the numbers it prints, and the clip it draws."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from loaded_tool import load_tool

from framekd.checkpoints import save_checkpoint
from framekd.examples import Example
from framekd.models import build_model
from framekd.train import torch_generator

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["Bell", "Moo, cow"]


@pytest.fixture(scope="module")
def tool():
    return load_tool("readme")


def clip(name: str, frames: slice, score: float = 0.9) -> Example:
    """A clip with a true bell from 2 to 4 s, and with scores of a bell in `frames`."""
    scores = np.full((2, 250), 0.01, np.float32)
    scores[0, frames] = score
    noise = np.random.default_rng(0).integers(-3000, 3000, 160_000).astype(np.int16)
    return Example(name, noise, [(2.0, 4.0, "Bell")], scores)


def test_the_table_has_one_number_per_cell_and_the_papers_row(tool):
    rows = [
        (setting, model, mean, published)
        for setting, mean, published in [("li_et_al", 1.26, 40.9), ("proposed", 30.04, 45.8)]
        for model in ("ATST-F", "average")
    ]
    table = pd.DataFrame(rows, columns=["setting", "model", "mean", "published"])
    lines = tool.results_table(table).splitlines()
    assert lines[0] == "| PSDS1, percent | ATST-F | average |"
    assert lines[2].endswith("| 1.3 | 1.3 |") and lines[3] == "| **proposed** | 30.0 | 30.0 |"
    assert lines[4] == "| *the paper: proposed* | *45.8* | *45.8* |" and len(lines) == 5


def test_detections_are_the_filtered_scores_above_the_threshold(tool):
    assert tool.detections(clip("a", slice(50, 100)), CLASSES, 0.5) == [(2.0, 4.04, "Bell")]
    assert tool.detections(clip("a", slice(50, 53)), CLASSES, 0.5) == []


def test_detections_that_fit_the_true_events_better_count_more(tool):
    clips = [clip("silent", slice(0, 0)), clip("late", slice(80, 130)), clip("right", slice(50, 100))]
    values = [tool.agreement(one, CLASSES, 0.5) for one in clips]
    assert values[0] < values[1] < values[2] and values[2] == pytest.approx(100 / 101)


def test_a_clip_is_drawn_with_true_and_detected_events_and_both_scores(tool):
    ensemble = np.full((2, 250), 0.25, np.float32)
    figure = tool.clip_figure(clip("right", slice(50, 100)), ensemble, CLASSES, 0.5, "BEATs")
    below = figure.axes[1]
    assert [label.get_text() for label in below.get_yticklabels()] == ["Bell"]
    spans = [path.get_extents() for bars in below.collections[:2] for path in bars.get_paths()]
    assert [(box.x0, box.x1) for box in spans] == [(2.0, 4.0), (2.0, 4.04)]
    np.testing.assert_allclose(below.lines[0].get_ydata(), 0.44 - 0.46 * 0.25)


def test_the_scores_of_several_checkpoints_are_those_of_their_mean_logits(tool, tmp_path):
    models = [build_model("tiny", n_classes=2).init_weights(torch_generator(seed)).eval() for seed in (1, 2)]
    for number, model in enumerate(models):
        save_checkpoint(tmp_path / str(number), model, classes=CLASSES, provenance={})
    wave = clip("a", slice(0, 0)).waveform
    with torch.inference_mode():
        mel = torch.from_numpy(wave[None] / np.float32(32768))
        mean = sum(model(model.frontend(mel), outputs="logits")[0][0] for model in models) / 2
    found = tool.scores_of([tmp_path / "0", tmp_path / "1"], wave)
    np.testing.assert_allclose(found, mean.sigmoid().numpy(), atol=1e-6)
