"""Segment AUROC, intersection F1, mean average precision and decoding against the libraries that define them."""

import numpy as np
import pytest
import torch
from sed_scores_eval.base_modules.scores import create_score_dataframe
from sklearn.metrics import average_precision_score

from framekd.config import UserError
from framekd.metrics import (
    SegmentAUROC,
    decode_events,
    intersection_f1,
    mean_average_precision,
    psds1,
    segment_auroc,
)


def example(seed, n_clips=30, n_frames=250, decimals=6):
    rng = np.random.default_rng(seed)
    classes = ["a", "b", "c"]
    truth, durations = {}, {}
    scores = rng.normal(size=(n_clips, n_frames, 3)).round(decimals)
    for n in range(n_clips):
        onset = float(rng.integers(0, 6000)) / 1000
        truth[f"f{n}"] = [(onset, onset + float(rng.integers(0, 4000)) / 1000, classes[n % 3])]
        durations[f"f{n}"] = float(rng.choice([10.0, 10.01, 7.3, 1.0]))
        scores[n, int(onset * 25) :, n % 3] += 1
    stamps = np.minimum(np.arange(n_frames + 1) * 0.04, 10.0)
    frames = {clip: create_score_dataframe(rows, stamps, classes) for clip, rows in zip(truth, scores)}
    return dict(zip(truth, scores)), truth, durations, classes, frames


@pytest.mark.parametrize("max_fpr", [0.1, None])
@pytest.mark.parametrize("seconds", [1.0, 0.7])
def test_segment_auroc_is_that_of_sed_scores_eval(max_fpr, seconds):
    from sed_scores_eval.segment_based import auroc

    scores, truth, durations, classes, frames = example(0)
    expected, _ = auroc(frames, truth, durations, segment_length=seconds, max_fpr=max_fpr)
    found = segment_auroc(scores, truth, durations, classes, segment_seconds=seconds, max_fpr=max_fpr)
    assert found.value == pytest.approx(expected["mean"], abs=1e-9)
    assert found.per_class == pytest.approx({c: expected[c] for c in classes}, abs=1e-9)


def test_segment_auroc_with_ties_and_without_a_limit_is_the_rank_statistic():
    scores, truth, durations, classes, _ = example(1, decimals=0)
    found = segment_auroc(np.stack(list(scores.values())), truth, durations, classes, clips=list(truth), max_fpr=None)
    evaluation = SegmentAUROC(classes, truth, durations)
    evaluation.add(list(truth), torch.from_numpy(np.stack(list(scores.values()))))
    values = np.concatenate([evaluation._scores[row] for row in range(len(truth))])
    tags = np.concatenate([evaluation._targets(row) for row in range(len(truth))])
    for k, name in enumerate(classes):
        yes, no = values[tags[:, k], k], values[~tags[:, k], k]
        # a staircase counts pairs of equal scores as lost
        assert found.per_class[name] == pytest.approx((yes[:, None] > no).mean())


def test_segment_auroc_refuses():
    scores, truth, durations, classes, _ = example(0, n_clips=4)
    scores["f1"][3, 2] = np.nan
    with pytest.raises(UserError, match="clip f1 contain NaN"):
        segment_auroc(scores, truth, durations, classes)
    del scores["f1"]
    with pytest.raises(UserError, match=r"only in ground truth \(1\): \[f1\]"):
        segment_auroc(scores, truth, durations, classes)
    with pytest.raises(UserError, match="4 clips with ground truth have no scores"):
        SegmentAUROC(classes, truth, durations).result()


@pytest.mark.parametrize("tolerance", [0.5, 0.7])
@pytest.mark.parametrize("threshold", [0.25, 1.05])
def test_intersection_f1_is_that_of_sed_scores_eval(tolerance, threshold):
    from sed_scores_eval.intersection_based import fscore

    scores, truth, _, classes, frames = example(2)
    expected, precision, recall, _ = fscore(
        frames, truth, threshold=threshold, dtc_threshold=tolerance, gtc_threshold=tolerance
    )
    events = {clip: decode_events(rows, classes, threshold) for clip, rows in scores.items()}
    found = intersection_f1(truth, events, dtc=tolerance, gtc=tolerance, classes=classes)
    assert found.f1 == pytest.approx(expected["micro_average"], abs=1e-12)
    assert found.macro_f1 == pytest.approx(expected["macro_average"], abs=1e-12)
    assert found.precision == pytest.approx(precision["micro_average"], abs=1e-12)
    assert found.recall == pytest.approx(recall["micro_average"], abs=1e-12)
    assert found.per_class == pytest.approx({c: expected[c] for c in classes}, abs=1e-12)


def test_decoded_events_are_those_of_sed_scores_eval():
    from sed_scores_eval.base_modules.detection import scores_to_event_list

    scores, _, _, classes, frames = example(3)
    for clip in scores:
        assert decode_events(scores[clip], classes, 0.5) == scores_to_event_list(frames[clip], np.full(3, 0.5))
        assert decode_events(torch.from_numpy(scores[clip]), classes, {"a": 0.5, "b": 0.5, "c": 0.5}) == decode_events(
            scores[clip], classes
        )


def test_decoding_between_centres_with_a_shortest_length_as_hear():
    scores = np.zeros((3000, 2))
    scores[10:14, 0] = scores[20:25, 0] = scores[0:1, 1] = scores[2990:, 1] = 1
    stamps = np.arange(3001) * 0.04
    events = decode_events(scores, ["x", "y"], timestamps=stamps, times="centres", min_seconds=0.125)
    # four frames span 120 ms between their centres, five 160 ms
    assert [(round(a, 6), round(b, 6), c) for a, b, c in events] == [(0.82, 0.98, "x"), (119.62, 119.98, "y")]
    exact = decode_events(scores, ["x", "y"], timestamps=stamps, times="centres", min_seconds=0.12)
    assert len(exact) == 3


def test_events_end_with_the_file():
    scores = np.zeros((250, 1))
    scores[100:110] = scores[60:80] = 1
    assert decode_events(scores, ["x"], duration=3.0) == [(2.4, 3.0, "x")]
    assert decode_events(scores, ["x"], duration=2.4) == []


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (np.zeros((5, 2)), {}, "shape"),
        (np.full((5, 1), np.nan), {}, "NaN"),
        (np.zeros((251, 1)), {}, "timestamps"),
        (np.zeros((5, 1)), {"timestamps": [0.0, 1.0]}, "6 timestamps"),
        (np.zeros((5, 1)), {"threshold": {"y": 1.0}}, "threshold for class x"),
    ],
)
def test_decoding_refuses(scores, options, words):
    with pytest.raises(UserError, match=words):
        decode_events(scores, ["x"], **options)


@pytest.mark.parametrize("decimals", [6, 1])
def test_average_precision_is_that_of_scikit_learn(decimals):
    rng = np.random.default_rng(4)
    scores, tags = rng.normal(size=(200, 6)).round(decimals), (rng.random((200, 6)) < 0.2).astype(int)
    tags[:, 4] = 0
    found = mean_average_precision(torch.from_numpy(scores), torch.from_numpy(tags), list("abcdef"))
    expected = {name: average_precision_score(tags[:, k], scores[:, k]) for k, name in enumerate("abcdef") if k != 4}
    assert found.per_class == pytest.approx(expected, abs=1e-12)
    assert found.value == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert found.left_out == ("e",) and found.to_dict()["classes_without_truth"] == ["e"]


def test_average_precision_refuses():
    good = np.zeros((4, 2))
    with pytest.raises(UserError, match="0 or 1"):
        mean_average_precision(good, good + 0.5)
    with pytest.raises(UserError, match="No clip has a tag"):
        mean_average_precision(good, good)
    with pytest.raises(UserError, match=r"\(4, 2\) and \(4, 1\)"):
        mean_average_precision(good, good[:, :1])
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(UserError, match="clip 2"):
        mean_average_precision(bad, good + 1)


def test_bootstrap_evaluates_each_draw_exactly_and_widens_what_it_keeps():
    from framekd.metrics import bootstrap, bootstrap_psds1, prepare_truth

    scores, truth, durations, classes, _ = example(5, decimals=1)
    for clip, ((onset, offset, name),) in truth.items():
        scores[clip][int(onset * 25) : int(offset * 25) + 1, classes.index(name)] += 4
    options = {"e_max": 600.0}
    changes = bootstrap._Changes(scores, prepare_truth(truth, durations, classes), [0, 1, 2], None, 0.7, 0.7)
    undecided = 0
    for keep in (3, 15, 1000):
        changes.collect(keep)
        for seed in range(6):
            draw = np.random.default_rng(seed).multinomial(30, np.full(30, 1 / 30))
            copies = [(f"{i}x{j}", f"f{i}") for i, times in enumerate(draw) for j in range(times)]
            for alpha_st in (0.0, 1.0):
                value = bootstrap._evaluate(changes, draw, 600.0, alpha_st)
                undecided += value is None
                expected = psds1(
                    {new: scores[old] for new, old in copies}, {new: truth[old] for new, old in copies},
                    {new: durations[old] for new, old in copies}, classes, alpha_st=alpha_st, empty_classes="drop",
                    **options,
                )  # fmt: skip
                assert value is None or value == pytest.approx(expected.value, abs=1e-12)
    assert 0 < undecided < 36
    interval = bootstrap_psds1(scores, truth, durations, classes, seed=1, resamples=200, **options)
    again = bootstrap_psds1(scores, truth, durations, classes, seed=1, resamples=200, threads=1, **options)
    assert interval == again
    assert interval.value == pytest.approx(psds1(scores, truth, durations, classes, **options).value, abs=1e-12)
    assert interval.low < interval.value < interval.high
    assert bootstrap_psds1(scores, truth, durations, classes, seed=2, resamples=200, **options).low != interval.low
