"""Figures show what was given to them."""

import io
import subprocess
import sys

import numpy as np
import pytest

from framekd.config import UserError
from framekd.metrics import psds1
from framekd.plots import class_bars, psd_roc, score_timeline


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


def test_timeline_shows_true_events_first_and_shades_them():
    scores = np.zeros((250, 5))
    scores[:, 3], scores[100:200, 1], scores[:, 0] = 0.9, 0.7, -np.inf
    figure = score_timeline(scores, list("abcde"), [(4.0, 8.0, "e"), (1.0, 2.0, "e")], top=3, threshold=0.5, title="Y1")
    assert [axes.get_ylabel() for axes in figure.axes] == ["e", "d", "b"]
    spans = [patch for patch in figure.axes[0].patches if patch.get_alpha() == 0.3]
    assert sorted((p.get_x(), p.get_x() + p.get_width()) for p in spans) == [(1.0, 2.0), (4.0, 8.0)]
    assert figure.axes[-1].get_xlim() == (0.0, 10.0)
    assert png(figure)
    with pytest.raises(UserError, match="shape"):
        score_timeline(scores, ["a"])


def test_no_window_system_is_touched():
    """A process that draws every figure has not imported pyplot, which would choose a window system."""
    code = """
import sys, numpy as np
from framekd.metrics import psds1
from framekd.plots import class_bars, psd_roc, score_timeline
scores = np.random.default_rng(0).normal(size=(1, 250, 1))
result = psds1(scores, {"f": [(1.0, 3.0, "a")]}, {"f": 10.0}, ["a"], clips=["f"])
for figure in (class_bars(result, {"a": 5}), psd_roc({"ours": result}), score_timeline(scores[0], ["a"])):
    figure.savefig(sys.stderr.buffer, format="png")
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"False"] and done.stderr.count(b"PNG") == 3
