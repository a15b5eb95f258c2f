"""Median filter: scipy's, element for element, for any window, on arrays and tensors."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter as scipy_filter

from framekd.config import UserError
from framekd.metrics import filters, median_filter, window_frames
from framekd.metrics._compile import kernels
from framekd.metrics.filters import _filter_tensor, selection_network


@pytest.fixture(autouse=True, scope="module")
def numba():
    """The compiled kernel is what filters here: few scores would not load it."""
    kernels("filter")


def expected(scores, window):
    return scipy_filter(scores, size=(1, window, 1), mode="reflect")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 60), st.integers(1, 130), st.integers(1, 25), st.integers(0, 9), st.booleans(),
)  # fmt: skip
def test_equal_to_scipy(clips, frames, classes, window, seed, ties):
    # beyond seven times the length scipy's own reflection goes wrong
    window = min(window, 7 * frames)
    scores = np.random.default_rng(seed).normal(size=(clips, frames, classes))
    scores = (scores.round(0) if ties else scores).astype([np.float32, np.float64][seed % 2])
    found = median_filter(scores, frames=window)
    assert found.dtype == scores.dtype
    assert np.array_equal(found, expected(scores, window))
    assert np.array_equal(_filter_tensor(torch.from_numpy(scores), window).numpy(), found)


@pytest.mark.parametrize("kind", ["float16", "float32", "int64"])
def test_without_numba_the_results_are_the_same(monkeypatch, kind):
    scores = np.random.default_rng(1).normal(0, 9, size=(3, 40, 5)).astype(kind)
    compiled = median_filter(scores)
    monkeypatch.setattr(filters, "compiles", lambda: False)
    plain = median_filter(scores)
    assert plain.dtype == compiled.dtype and np.array_equal(plain, compiled)
    with pytest.raises(UserError, match="NaN"):
        median_filter(np.full((2, 3, 4), np.nan))


def test_few_scores_do_not_load_numba(monkeypatch):
    scores = np.random.default_rng(1).random((600, 447), np.float32)
    few, many = median_filter(scores[:250]), median_filter(scores)
    monkeypatch.delitem(sys.modules, "numba")
    asked = []
    monkeypatch.setattr(filters, "kernels", lambda name: asked.append(name) or kernels(name))
    assert np.array_equal(median_filter(scores[:250]), few) and asked == []
    assert np.array_equal(median_filter(scores), many) and asked == ["filter"]


@pytest.mark.parametrize("window", range(1, 34))
def test_network_selects_the_upper_median(window):
    values = np.random.default_rng(window).normal(size=(window, 200))
    rows = values.copy()
    for i, j in selection_network(window):
        rows[i], rows[j] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
    assert np.array_equal(rows[window // 2], np.sort(values, axis=0)[window // 2])


def test_a_block_of_twelve_frames_comes_out_thirteen_long():
    scores = np.zeros((250, 1))
    scores[100:112] = 1
    filtered = median_filter(scores, seconds=0.48)
    assert np.flatnonzero(filtered[:, 0]).tolist() == list(range(100, 113))


@pytest.mark.parametrize(("seconds", "frames"), [(0.48, 12), (0.36, 9), (0.25, 6), (0.15, 4), (0.04, 1), (0.0, 1)])
def test_windows_in_frames(seconds, frames):
    assert window_frames(seconds) == frames


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_type_and_shape(kind):
    scores = torch.randn(2, 3, 40, 5, generator=torch.Generator().manual_seed(0)).to(kind)
    found = median_filter(scores)
    assert found.dtype == kind and found.shape == scores.shape
    flat = scores.double().numpy().reshape(6, 40, 5)
    assert np.array_equal(found.double().numpy().reshape(6, 40, 5), expected(flat, 12))


def test_two_dimensions_non_contiguous_and_minus_infinity():
    scores = np.random.default_rng(0).normal(size=(7, 300)).astype(np.float32).T
    scores[20:40, 3] = -np.inf
    assert np.array_equal(median_filter(scores), expected(scores[None], 12)[0])


def test_the_input_is_left_alone():
    scores = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    before = scores.copy()
    for seconds in (0.0, 0.48):
        median_filter(scores, seconds)[:] = 9
        assert np.array_equal(scores, before)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_nan_is_refused(convert):
    scores = np.zeros((5, 250, 70), dtype=np.float32)
    scores[3, 100, 66] = np.nan
    with pytest.raises(UserError, match="clip 3"):
        median_filter(convert(scores))


def test_bad_windows_and_shapes():
    with pytest.raises(ValueError, match="0 s"):
        median_filter(np.zeros((5, 2)), seconds=-1)
    with pytest.raises(ValueError, match="one frame"):
        median_filter(np.zeros((5, 2)), frames=0)
    with pytest.raises(UserError, match="shape"):
        median_filter(np.zeros(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [9, 12])
def test_on_a_gpu(window):
    scores = np.random.default_rng(0).normal(size=(70, 250, 33)).astype(np.float32)
    found = median_filter(torch.from_numpy(scores).cuda(), frames=window)
    assert found.is_cuda
    assert np.array_equal(found.cpu().numpy(), expected(scores, window))
