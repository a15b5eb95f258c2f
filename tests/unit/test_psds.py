"""PSDS: equal to sed_scores_eval and to the definition, streamed or not; wrong input refused in a sentence."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psds_oracle import reference_psds, slow_psds

import framekd.metrics.psds as psds_module
from framekd.config import UserError
from framekd.metrics import PSDS, evaluation_classes, psds1

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@st.composite
def cases(draw, most_clips=6, most_frames=14):
    """Scores with ties, constant columns, -inf and halves; events that are empty, past the end or in short clips."""
    n_clips, n_classes = draw(st.integers(1, most_clips)), draw(st.integers(1, 3))
    n_frames = draw(st.integers(1, most_frames))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stamps = np.concatenate([[0.0], np.cumsum(rng.integers(1, 900, n_frames)) / 1000])
    scores = rng.normal(0, 2, (n_clips, n_frames, n_classes))
    if draw(st.booleans()):
        scores = scores.round(draw(st.integers(0, 1)))
    if draw(st.booleans()):
        scores[..., 0] = 0.5
    scores = scores.astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    if draw(st.booleans()):
        scores[rng.random(scores.shape) < 0.3] = -np.inf
    classes = [f"c{k}" for k in range(n_classes)]
    truth = {f"f{n}": [] for n in range(n_clips)}
    for n in range(n_clips):
        for name in classes:
            t = 0.0
            while rng.random() < 0.6:
                onset = t + rng.integers(1, 600) / 1000
                offset = onset + (0 if rng.random() < 0.2 else rng.integers(1, 4000) / 1000)
                truth[f"f{n}"].append((onset, offset, name))
                t = offset + 0.001
    for name in classes:
        if not any(c == name for events in truth.values() for *_, c in events):
            truth["f0"].append((0.2, 1.0, name))
    durations = {clip: float(rng.integers(1, 11)) for clip in truth}
    options = {
        "dtc": draw(st.sampled_from([0.7, 0.5, 0.0, 1.0])),
        "gtc": draw(st.sampled_from([0.7, 0.3, 0.0, 1.0])),
        "e_max": draw(st.sampled_from([100.0, 1000.0, 7000.0, 1e5])),
        "alpha_st": draw(st.sampled_from([0.0, 1.0, 0.5])),
    }
    return dict(zip(truth, scores)), truth, durations, classes, stamps, options


@settings(max_examples=100, **QUIET)
@given(cases())
def test_equal_to_sed_scores_eval(case):
    scores, truth, durations, classes, stamps, options = case
    result = psds1(scores, truth, durations, classes, timestamps=stamps, **options)
    try:
        value, single = reference_psds(scores, truth, durations, classes, stamps, **options)
    except IndexError:  # it cannot do a class without any change point; by definition such a class has 0
        assert min(result.per_class.values()) == 0
        return
    assert result.value == pytest.approx(value, abs=1e-9)
    assert result.per_class == pytest.approx(single, abs=1e-9)


@settings(max_examples=60, **QUIET)
@given(cases(most_clips=4, most_frames=8))
def test_equal_to_the_definition(case):
    scores, truth, durations, classes, stamps, options = case
    result = psds1(scores, truth, durations, classes, timestamps=stamps, **options)
    value, single = slow_psds(scores, truth, durations, classes, stamps, **options)
    assert result.value == pytest.approx(value, abs=1e-9)
    assert result.per_class == pytest.approx(single, abs=1e-9)


@settings(max_examples=60, **QUIET)
@given(cases(most_clips=90), st.randoms(use_true_random=False))
def test_pruning_while_streaming_loses_nothing(monkeypatch_room, case, random):
    """With hardly any room every few clips are pruned; any order and portions, the same bits."""
    scores, truth, durations, classes, stamps, options = case
    plain = psds1(scores, truth, durations, classes, timestamps=stamps, **options)
    with monkeypatch_room(4):
        evaluation = PSDS(classes, truth, durations, timestamps=stamps, threads=1, **options)
        clips = list(scores)
        random.shuffle(clips)
        while clips:
            n = random.randint(1, 40)
            portion, clips = clips[:n], clips[n:]
            evaluation.add(portion, torch.from_numpy(np.stack([scores[clip] for clip in portion])))
        streamed = evaluation.result()
    assert streamed.value == plain.value
    assert streamed.per_class == plain.per_class


@pytest.fixture(scope="module")
def monkeypatch_room():
    def room(size):
        context = pytest.MonkeyPatch.context()

        class Room:
            def __enter__(self):
                context.__enter__().setattr(psds_module, "_ROOM", size)

            def __exit__(self, *error):
                return context.__exit__(*error)

        return Room()

    return room


def example(n_clips=50, n_frames=250, n_classes=20, seed=0, noise=1.0):
    """Scores that follow their events, more or less."""
    rng = np.random.default_rng(seed)
    classes = [f"c{k}" for k in range(n_classes)]
    scores = rng.normal(0, noise, (n_clips, n_frames, n_classes)).astype(np.float32)
    truth, durations = {}, {}
    for n in range(n_clips):
        events = []
        for k in {n % n_classes, int(rng.integers(n_classes))}:
            onset = float(rng.integers(0, 8000)) / 1000
            offset = onset + float(rng.integers(100, 1900)) / 1000
            events.append((onset, offset, classes[k]))
            scores[n, int(onset * 25) : int(offset * 25) + 1, k] += 4
        truth[f"f{n}"], durations[f"f{n}"] = events, 10.0
    return scores, truth, durations, classes


def test_array_dict_torch_half_and_threads_agree():
    scores, truth, durations, classes = example()
    clips = list(truth)
    half = scores.astype(np.float16)
    plain = psds1(half, truth, durations, classes, clips=clips, threads=1)
    assert 0.1 < plain.value < 1
    others = [
        psds1(half.astype(np.float32), truth, durations, classes, clips=clips, threads=3),
        psds1(half.astype(np.float64), truth, durations, classes, clips=clips),
        psds1(dict(zip(clips, half)), truth, durations, classes),
        psds1(torch.from_numpy(half), truth, durations, classes, clips=clips),
        psds1(dict(zip(clips, torch.from_numpy(half))), truth, durations, classes),
    ]
    for other in others:
        assert other.per_class == plain.per_class and other.value == plain.value


def test_only_the_order_of_scores_matters():
    scores, truth, durations, classes = example(seed=1)
    clips = list(truth)
    logits = psds1(scores, truth, durations, classes, clips=clips)
    probabilities = psds1(1 / (1 + np.exp(-scores.astype(np.float64))), truth, durations, classes, clips=clips)
    assert logits.per_class == probabilities.per_class


def test_small_integers_and_bfloat16():
    scores, truth, durations, classes = example(seed=2)
    clips = list(truth)
    steps = np.clip((scores * 10 + 50), 0, 255).astype(np.uint8)
    expected = psds1(steps.astype(float), truth, durations, classes, clips=clips).value
    assert psds1(steps, truth, durations, classes, clips=clips).value == expected
    rough = torch.from_numpy(scores).bfloat16()
    expected = psds1(rough.double().numpy(), truth, durations, classes, clips=clips).value
    assert psds1(rough, truth, durations, classes, clips=clips).value == expected


def test_penalty_is_another_number_and_both_are_in_the_result():
    scores, truth, durations, classes = example()
    clips = list(truth)
    without = psds1(scores, truth, durations, classes, clips=clips)
    penalised = psds1(scores, truth, durations, classes, clips=clips, variance_penalty=True)
    assert without.value == pytest.approx(np.mean(list(without.per_class.values())), abs=1e-12)
    assert penalised.value < without.value
    assert without.at(1.0) == penalised.value and penalised.at(0.0) == without.value
    assert penalised.per_class == without.per_class


def test_memory_does_not_grow_with_the_clips():
    rng = np.random.default_rng(0)
    n_clips, classes = 1200, [f"c{k}" for k in range(8)]
    truth = {f"f{n}": [(1.0, 2.0, classes[n % 8])] for n in range(n_clips)}
    evaluation = PSDS(classes, truth, {clip: 10.0 for clip in truth}, e_max=20.0)
    sizes = []
    for n in range(0, n_clips, 100):
        evaluation.add([f"f{i}" for i in range(n, n + 100)], rng.normal(size=(100, 250, 8)).astype(np.float32))
        sizes.append(sum(tile.score.nbytes for tile in evaluation._tiles))
    assert sizes[-1] == sizes[1]
    # far fewer than the scores' 250 x 1200 x 2/3 local extremes of each class
    assert max(tile.count.max() for tile in evaluation._tiles) < 3000


def test_result_says_how_it_came_about():
    scores, truth, durations, classes = example()
    truth["f0"] = [(1.0, 2.0, "c0"), (2.0, 3.0, "c0"), (2.5, 2.7, "c0")]  # touching, then inside
    truth["f1"] = []
    truth["f2"] = [*truth["f2"], (0.0, 1.0, "elsewhere")]
    result = psds1(
        scores, truth, durations, [*classes, "never"], clips=list(truth), drop_clips_without_events=True,
        other_classes="drop", empty_classes="drop", score_classes=[*classes], notes={"median_filter_seconds": 0.48},
    )  # fmt: skip
    report = json.loads(json.dumps(result.to_dict()))
    assert report["merged_events"] == 2 and report["ignored_events"] == 1
    assert report["dropped_clips"] == {"count": 1, "first": ["f1"]}
    assert report["classes_without_truth"] == ["never"]
    assert report["counts"]["clips"] == 49 and report["counts"]["hours"] == pytest.approx(490 / 3600)
    assert report["counts"]["events"] == sum(report["events_per_class"].values())
    assert report["settings"]["dtc"] == 0.7 and report["settings"]["e_max"] == 100
    assert report["settings"]["median_filter_seconds"] == 0.48
    assert "49 clips" in str(result) and "1 clips without events left out" in str(result)


def test_merged_events_count_as_one():
    scores, truth, durations, classes = example()
    joined = dict(truth)
    truth["f0"], joined["f0"] = [(1.0, 2.0, "c0"), (2.0, 3.0, "c0")], [(1.0, 3.0, "c0")]
    a = psds1(scores, truth, durations, classes, clips=list(truth))
    b = psds1(scores, joined, durations, classes, clips=list(truth))
    assert a.value == b.value and a.merged_events == 1 and b.merged_events == 0


def test_score_columns_are_found_by_name():
    scores, truth, durations, classes = example()
    clips, order = list(truth), np.random.default_rng(0).permutation(22)
    wide = np.concatenate([scores, np.full_like(scores[..., :2], 99.0)], axis=2)[:, :, order]
    names = [[*classes, "x", "y"][i] for i in order]
    expected = psds1(scores, truth, durations, classes, clips=clips)
    assert psds1(wide, truth, durations, classes, clips=clips, score_classes=names).per_class == expected.per_class


def test_own_set_and_intersection_with_a_list():
    scores, truth, durations, classes = example()
    clips = list(truth)
    listed = [*clips[:30], "gone"]
    result = psds1(scores, truth, durations, classes, clips=clips, common_clips=listed)
    some = {clip: truth[clip] for clip in clips[:30]}
    expected = psds1(scores[:30], some, {c: 10.0 for c in some}, classes, clips=clips[:30], empty_classes="drop")
    assert result.common.value == expected.value
    assert result.common.coverage["in_list_without_ground_truth"] == 1
    assert result.common.counts["clips"] == 30 and result.counts["clips"] == 50
    assert result.value == psds1(scores, truth, durations, classes, clips=clips).value


def test_evaluation_classes_are_those_trained_and_present():
    truth = {"a": [(0.0, 1.0, "dog"), (0.0, 1.0, "zither")], "b": [(0.0, 1.0, "cat")]}
    assert evaluation_classes(["dog", "cat", "bell"], truth) == ["cat", "dog"]


def refusal(change):
    scores, truth, durations, classes = example(8, n_classes=2)
    scores = dict(zip(truth, scores))
    kwargs = {}
    change(scores, truth, durations, classes, kwargs)
    with pytest.raises(UserError) as error:
        psds1(scores, truth, durations, classes, **kwargs)
    return str(error.value)


def test_clips_must_agree_and_both_lists_are_shown():
    def change(scores, truth, durations, classes, kwargs):
        for n in range(7):
            del scores[f"f{n}"]
        scores["stranger"] = scores["f7"]

    text = refusal(change)
    assert "only in scores (1): [stranger]" in text
    assert "only in ground truth (7): [f0, f1, f2, f3, f4] and 2 more" in text
    text = refusal(lambda s, t, d, c, k: d.pop("f3"))
    assert "ground truth and durations differ" in text and "[f3]" in text


def test_nan_is_refused_with_its_clip():
    def change(scores, truth, durations, classes, kwargs):
        scores["f5"][17, 1] = np.nan

    assert "f5" in refusal(change) and "NaN" in refusal(change)


def test_classes_without_truth_are_named():
    text = refusal(
        lambda s, t, d, c, k: (c.append("unheard"), s.update({n: np.pad(x, ((0, 0), (0, 1))) for n, x in s.items()}))
    )
    assert "no event" in text and "unheard" in text


def test_events_of_other_classes_are_named():
    assert "barking" in refusal(lambda s, t, d, c, k: t["f1"].append((0.0, 1.0, "barking")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t, d, c, k: t["f1"].append((2.0, 1.0, "c0")), "Clip f1"),
        (lambda s, t, d, c, k: t["f1"].append((float("nan"), 1.0, "c0")), "Clip f1"),
        (lambda s, t, d, c, k: d.update(f2=0.0), "Clip f2 has a duration of 0.0 s"),
        (lambda s, t, d, c, k: k.update(timestamps=[0.0, 0.0, 1.0]), "strictly increasing"),
        (lambda s, t, d, c, k: k.update(timestamps=[0.0, 1.0]), "250 frames"),
        (lambda s, t, d, c, k: s.update(f1=s["f1"][:100]), "frames"),
        (lambda s, t, d, c, k: s.update(f1=s["f1"][:, :1]), "1 columns"),
        (lambda s, t, d, c, k: c.append("c0"), "different names"),
    ],
)
def test_other_bad_input(change, words):
    assert words in refusal(change)


def test_an_intersection_without_clips_is_refused():
    assert "none of the listed clips" in refusal(lambda s, t, d, c, k: k.update(common_clips=["gone"]))


@pytest.mark.parametrize(
    "change",
    [
        lambda s, t, d, c: s.pop("f1"),
        lambda s, t, d, c: t.pop("f1"),
        lambda s, t, d, c: d.pop("f1"),
        lambda s, t, d, c: t["f1"].append((0.0, 0.01, "unlisted")),
        lambda s, t, d, c: t.update({clip: [(0.0, 1.0, "c1")] for clip in t}),
        lambda s, t, d, c: s.update(f1=s["f1"][:-1]),
        lambda s, t, d, c: c.append("c2"),
    ],
    ids=["scores", "truth", "durations", "unlisted class", "class without truth", "frames", "columns"],
)
def test_both_refuse(change):
    array, truth, durations, classes = example(8, n_classes=2)
    scores = dict(zip(truth, array))
    change(scores, truth, durations, classes)
    stamps = np.arange(251) * 0.04
    with pytest.raises((ValueError, AssertionError, KeyError)):
        reference_psds(scores, truth, durations, classes, stamps)
    with pytest.raises(UserError):
        psds1(scores, truth, durations, classes)


def test_more_than_ten_seconds_need_timestamps():
    scores, truth, durations, classes = example(4, n_frames=251, n_classes=2)
    with pytest.raises(UserError, match="timestamps"):
        psds1(scores, truth, durations, classes, clips=list(truth))


def test_streaming_refuses_strangers_repetition_and_gaps():
    scores, truth, durations, classes = example(8, n_classes=2)
    evaluation = PSDS(classes, truth, durations)
    evaluation.add("f0", scores[0])
    with pytest.raises(UserError, match=r"\[f9\].*missing for 7 clips: \[f1, f2"):
        evaluation.add(["f9"], scores[:1])
    with pytest.raises(UserError, match="twice"):
        evaluation.add("f0", scores[0])
    with pytest.raises(UserError, match="7 of 8 clips"):
        evaluation.result()
    evaluation.add([f"f{n}" for n in range(1, 8)], scores[1:])
    assert evaluation.result().value == psds1(scores, truth, durations, classes, clips=list(truth)).value


@pytest.mark.parametrize(
    "options", [{"dtc": 1.2}, {"e_max": 0.0}, {"alpha_st": -1.0}, {"threads": 0}, {"empty_classes": "?"}]
)
def test_settings_out_of_range(options):
    scores, truth, durations, classes = example(8, n_classes=2)
    with pytest.raises(ValueError):
        psds1(scores, truth, durations, classes, clips=list(truth), **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_a_gpu():
    scores, truth, durations, classes = example()
    expected = psds1(scores, truth, durations, classes, clips=list(truth))
    found = psds1(torch.from_numpy(scores).cuda(), truth, durations, classes, clips=list(truth))
    assert found.per_class == expected.per_class
