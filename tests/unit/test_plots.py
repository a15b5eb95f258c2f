"""Figures show what was given to them."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from framekd.config import UserError
from framekd.metrics import psds1
from framekd.overview import Overview
from framekd.plots import class_bars, psd_roc
from framekd.predict import Prediction, event_runs, event_table
from framekd.timeline import detection_timeline


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    truth = {f"f{n}": [(1.0, 3.0, "ab"[n % 2])] for n in range(20)}
    scores = rng.normal(size=(20, 250, 2))
    for n in range(20):
        scores[n, 25:75, n % 2] += 3 if n % 2 else 8
    return psds1(scores, truth, dict.fromkeys(truth, 10.0), ["a", "b"], clips=list(truth), e_max=500)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def test_bars_stand_in_order_of_training_events(result):
    figure = class_bars(result, {"a": 5, "b": 700})
    above, below = figure.axes
    assert [bar.get_height() for bar in below.patches] == pytest.approx(
        [100 * result.per_class["b"], 100 * result.per_class["a"]]
    )
    assert [text.get_text() for text in below.get_xticklabels()] == ["b", "a"]
    assert above.get_yscale() == "log" and list(above.lines[0].get_ydata()) == [700, 5]
    assert "20 clips" in figure.get_suptitle()
    assert png(figure).startswith(b"\x89PNG")
    with pytest.raises(UserError, match="class b"):
        class_bars(result, {"a": 5})


def test_area_under_the_drawn_curve_is_the_score(result):
    figure = psd_roc({"ours": result}, classes=["a"])
    (axes,) = figure.axes
    x, y = axes.lines[0].get_data()
    assert np.sum(np.diff(x) * np.asarray(y)[:-1]) / 500 == pytest.approx(result.value)
    x, y = axes.lines[1].get_data()
    assert np.sum(np.diff(x) * np.asarray(y)[:-1]) / 500 == pytest.approx(result.per_class["a"])
    assert f"ours: {result.value:.3f}" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert png(figure)
    with pytest.raises(UserError, match="no class z"):
        psd_roc({"ours": result}, classes=["z"])
    with pytest.raises(UserError, match="no result"):
        psd_roc({})


@pytest.mark.parametrize("hours", [0.01, 1])
def test_detected_events_are_drawn_and_named_as_detected_on_one_axis(hours):
    frames, names = round(hours * 90_000), [f"class {k}" for k in range(20)]
    names[3] = r"$\foo$"  # shown as it is, like the title
    overview, scores = Overview(), np.zeros((frames, 20), np.float32)
    scores[:, 3] = 0.4
    scores[100:200, 5] = scores[300:350, 5] = scores[400:, 7] = 0.9
    for part in np.array_split(scores, 30):
        overview.add_scores(part)
        overview.add_audio(np.zeros(640 * len(part), np.float32))
    peaks = pd.DataFrame({"event_label": names, "score": scores.max(0), "onset": 0.0})
    peaks = peaks.sort_values("score", ascending=False, kind="stable")
    runs = event_runs([scores], np.full(20, 0.5))
    found = Prediction(event_table(runs, names, frames / 25), peaks, frames / 25)
    figure = detection_timeline(found, overview, names, title=r"$\bar.mp3$")
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[1:4] == ["class 7 (1)", "class 5 (2)", r"$\foo$ (0)"] and len(labels) == 9
    assert {axes.get_xlim() for axes in figure.axes} == {(0, frames / 25)}
    (bars,) = figure.axes[2].collections
    drawn = [path.get_extents() for path in bars.get_paths()]
    assert [box.x0 for box in drawn] == pytest.approx([4, 12]) and drawn[0].x1 >= 8
    assert all(box.width >= frames / 25 / 900 for box in drawn), "too narrow to see"
    assert "detected event (3 in 2 classes)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(overview.scores()[0]) <= 2049 and png(figure)


def test_no_window_system_is_touched():
    """A process that draws every figure has not imported pyplot, which would choose a window system."""
    code = """
import sys, numpy as np
from framekd.metrics import psds1
from framekd.plots import class_bars, psd_roc
scores = np.random.default_rng(0).normal(size=(1, 250, 1))
result = psds1(scores, {"f": [(1.0, 3.0, "a")]}, {"f": 10.0}, ["a"], clips=["f"])
for figure in (class_bars(result, {"a": 5}), psd_roc({"ours": result})):
    figure.savefig(sys.stderr.buffer, format="png")
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"False"] and done.stderr.count(b"PNG") == 2
