"""Event-based F-measure against sed_eval, and against all matchings where there are few events."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framekd.config import UserError
from framekd.metrics import event_f1, onset_f1, segment_f1
from framekd.metrics.event_based import onset_matches, onset_offset_matches

TIMES = st.lists(st.integers(0, 40).map(lambda i: i / 20), max_size=5)


@settings(max_examples=150, deadline=None)
@given(TIMES, TIMES)
def test_two_pointers_find_the_largest_matching(reference, estimated):
    few, many = sorted((reference, estimated), key=len)
    best = max(sum(abs(a - b) <= 0.2 for a, b in zip(few, chosen)) for chosen in itertools.permutations(many, len(few)))
    assert onset_matches(reference, estimated, 0.2) == best


@settings(max_examples=100, deadline=None)
@given(TIMES, TIMES, st.integers(0, 9))
def test_offsets_too(reference, estimated, seed):
    rng = np.random.default_rng(seed)
    a = [(t, t + float(rng.integers(1, 30)) / 10) for t in reference]
    b = [(t, t + float(rng.integers(1, 30)) / 10) for t in estimated]

    def fits(r, e):
        return abs(r[0] - e[0]) <= 0.2 and abs(r[1] - e[1]) <= max(0.2, 0.2 * (r[1] - r[0]))

    if len(a) <= len(b):
        best = max(sum(map(fits, a, chosen)) for chosen in itertools.permutations(b, len(a)))
    else:
        best = max(sum(map(fits, chosen, b)) for chosen in itertools.permutations(a, len(b)))
    assert onset_offset_matches(a, b, 0.2, 0.2) == best


def some_events(seed, files=3, classes=3):
    rng = np.random.default_rng(seed)
    reference, estimated = {}, {}
    for f in range(files):
        starts = rng.uniform(0, 30, rng.integers(1, 25)).round(3)
        labels = rng.integers(0, classes, len(starts))
        reference[f"f{f}"] = [(float(t), float(t + rng.uniform(0.1, 3)), f"c{k}") for t, k in zip(starts, labels)]
        estimated[f"f{f}"] = [
            (max(0.0, a + float(rng.normal(0, 0.1))), b + float(rng.normal(0, 0.3)) + 0.5, c)
            for a, b, c in reference[f"f{f}"]
            if rng.random() < 0.8
        ] + [(float(t), float(t) + 1, "c0") for t in rng.uniform(0, 30, 3)]
    return reference, estimated


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("collar", "share"), [(0.05, None), (0.2, None), (0.2, 0.2)])
def test_equal_to_sed_eval(seed, collar, share):
    import sed_eval
    from dcase_util.containers import MetaDataContainer

    reference, estimated = some_events(seed)
    classes = ["c0", "c1", "c2"]
    metric = sed_eval.sound_event.EventBasedMetrics(
        classes, t_collar=collar, evaluate_offset=share is not None, percentage_of_length=share or 0.5
    )
    for file in reference:
        tables = [
            MetaDataContainer([{"filename": file, "onset": a, "offset": b, "event_label": c} for a, b, c in side[file]])
            for side in (reference, estimated)
        ]
        metric.evaluate(*tables)
    overall = metric.results_overall_metrics()["f_measure"]
    found = event_f1(reference, estimated, collar=collar, offset_share=share, classes=classes)
    assert found.f1 == pytest.approx(overall["f_measure"], abs=1e-12)
    assert found.precision == pytest.approx(overall["precision"], abs=1e-12)
    assert found.recall == pytest.approx(overall["recall"], abs=1e-12)
    macro = metric.results_class_wise_average_metrics()["f_measure"]["f_measure"]
    assert found.macro_f1 == pytest.approx(macro, abs=1e-12)
    if share is None:
        assert onset_f1(reference, estimated, collar=collar).f1 == found.f1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("seconds", [1.0, 0.1])
def test_segments_are_equal_to_sed_eval(seed, seconds):
    import sed_eval
    from dcase_util.containers import MetaDataContainer

    reference, estimated = some_events(seed)
    classes = ["c0", "c1", "c2"]
    metric = sed_eval.sound_event.SegmentBasedMetrics(classes, time_resolution=seconds)
    for file in reference:
        tables = [
            MetaDataContainer([{"filename": file, "onset": a, "offset": b, "event_label": c} for a, b, c in side[file]])
            for side in (reference, estimated)
        ]
        metric.evaluate(*tables)
    overall = metric.results_overall_metrics()["f_measure"]
    found = segment_f1(reference, estimated, segment_seconds=seconds, classes=classes)
    assert found.f1 == pytest.approx(overall["f_measure"], abs=1e-12)
    assert found.precision == pytest.approx(overall["precision"], abs=1e-12)
    macro = metric.results_class_wise_average_metrics()["f_measure"]["f_measure"]
    assert found.macro_f1 == pytest.approx(macro, abs=1e-12)


def test_counts_and_empty_sides():
    result = onset_f1({"a": [(1.0, 2.0, "x"), (5.0, 6.0, "y")], "b": []}, {"a": [], "b": []})
    assert (result.f1, result.precision, result.recall, result.macro_f1) == (0, 0, 0, 0)
    assert result.counts == {"x": (1, 0, 0), "y": (1, 0, 0)}
    report = onset_f1({"a": [(1.0, 2.0, "x")]}, {"a": [(1.05, 9.0, "x")]}, collar=0.2).to_dict()
    assert report["f1"] == 1 and report["counts"] == {"files": 1, "reference": 1, "estimated": 1, "matches": 1}
    assert report["settings"]["collar"] == 0.2


def test_bad_input():
    with pytest.raises(UserError, match=r"only in reference events \(1\): \[a\]"):
        onset_f1({"a": []}, {"b": []})
    with pytest.raises(UserError, match=r"not listed: .z."):
        onset_f1({"a": [(0.0, 1.0, "z")]}, {"a": []}, classes=["x"])
    with pytest.raises(UserError, match=r"File a .*NaN"):
        onset_f1({"a": [(float("nan"), 1.0, "z")]}, {"a": []})
    with pytest.raises(ValueError, match="collar"):
        onset_f1({"a": []}, {"a": []}, collar=0)
