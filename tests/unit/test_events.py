"""The frame grid, merging and balanced sampling, against slow and obviously right versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framekd import events

columns = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9990), st.integers(0, 3000)), min_size=0, max_size=40
)


def as_columns(rows):
    clip, label, onset, length = (np.array(c) for c in zip(*rows)) if rows else [np.zeros(0, int)] * 4
    return clip, label, onset / 1000, (onset + length) / 1000


def merged_slowly(clip, label, onset, offset):
    out = []
    for key in sorted(set(zip(clip.tolist(), label.tolist()))):
        rows = sorted((a, b) for c, k, a, b in zip(clip, label, onset, offset) if (c, k) == key)
        current = list(rows[0])
        for a, b in rows[1:]:
            if current[1] >= a:
                current[1] = max(current[1], b)
            else:
                out.append((*key, *current))
                current = [a, b]
        out.append((*key, *current))
    return out


@given(columns)
def test_merging_equals_the_definition(rows):
    found = events.merge_events(*as_columns(rows))
    assert list(zip(*(c.tolist() for c in found))) == merged_slowly(*as_columns(rows))


@pytest.mark.parametrize(
    ("onset", "offset", "span"),
    [
        (0.0, 10.0, (0, 250)),
        (0.001, 0.002, (0, 1)),
        (0.04, 0.08, (1, 2)),
        (0.28, 0.56, (7, 14)),  # 0.28 x 25 is 7.000000000000001 in floats
        (0.0399, 0.0401, (0, 2)),
        (9.99, 11.0, (249, 250)),
        (10.0, 10.01, (250, 250)),
        (1.0, 1.0, (25, 25)),
    ],
)
def test_frames_floor_the_onset_and_ceil_the_offset(onset, offset, span):
    begin, end = events.frame_span(np.array([onset]), np.array([offset]))
    assert (begin[0], end[0]) == span


@given(st.integers(0, 12_000), st.integers(0, 12_000))
def test_frame_spans_in_exact_arithmetic(onset_ms, length_ms):
    begin, end = events.frame_span(
        np.array([onset_ms / 1000]), np.array([(onset_ms + length_ms) / 1000]), n_frames=None
    )
    assert begin[0] == onset_ms // 40
    assert end[0] == -(-(onset_ms + length_ms) // 40)


@given(columns)
def test_active_frames_equal_the_sum_of_targets(rows):
    clip, label, onset, offset = as_columns(rows)
    begin, end = events.frame_span(onset, offset)
    rows = zip(*(c.tolist() for c in events.active_frames(clip, label, begin, end)))
    found = {(c, k): n for c, k, n in rows}
    for c in set(clip.tolist()):
        mine = clip == c
        targets = events.frame_targets(label[mine], begin[mine], end[mine], 4)
        for k in set(label[mine].tolist()):
            assert found[(c, k)] == targets[k].sum()


def test_balanced_weights_are_the_released_formula():
    # Two clips, classes 0 (100 frames in each) and 1 (10 frames in the second): N = 200, 10.
    clip, label, amount = np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([100, 100, 10])
    found = events.balanced_weights(clip, label, amount, 3, 2)
    first = 100 * 1000 / (30 + 200)
    assert found == pytest.approx([first, first + 10 * 1000 / (30 + 10), 0.0])


def test_active_seconds_per_class():
    found = events.active_seconds(np.array([0, 2, 0]), np.array([0.0, 1.0, 5.0]), np.array([1.0, 1.5, 7.0]), 3)
    assert found.tolist() == [3.0, 0.0, 0.5]
