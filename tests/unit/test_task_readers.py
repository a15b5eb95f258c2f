"""Downstream tasks: readers of their layouts, HEAR's labels and events, scores."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from downstream_sets import CLASSES, write_desed, write_hear

from framekd import tasks
from framekd.config import Task, UserError
from framekd.tasks import desed, hear
from framekd.tasks.problem import Audio

pytest_plugins = ("downstream_fixtures",)


def test_hear_labels_are_the_frames_whose_centre_is_inside():
    draw = np.random.default_rng(0)
    onset = np.concatenate([draw.uniform(0, 9, 200), np.arange(20) * 0.02])
    offset = onset + np.concatenate([draw.uniform(0, 0.5, 200), np.full(20, 0.04)])
    begin, end = hear.centre_frames(onset, offset)
    centre = (np.arange(300) + 0.5) * 0.04
    for a, b, first, stop in zip(onset, offset, begin, end):
        active = np.flatnonzero((centre >= a - 1e-12) & (centre < b + 1e-7))
        assert list(range(first, stop)) == active.tolist(), (a, b)


def brute_events(scores, names, min_seconds):
    """One class at a time, one frame at a time."""
    out = []
    for c, name in enumerate(names):
        run = []
        for t in range(len(scores) + 1):
            if t < len(scores) and scores[t, c] > 0.5:
                run.append(round((t + 0.5) * 0.04, 6))
                continue
            if run and run[-1] - run[0] >= min_seconds - 1e-9:
                out.append((run[0], run[-1], name))
            run = []
    return sorted(out)


@pytest.mark.parametrize("min_seconds", [0.0, 0.05, 0.125])
def test_detected_events_equal_a_walk_over_the_frames(min_seconds):
    scores = np.random.default_rng(1).uniform(size=(400, 5)) ** 0.3
    found = hear.detect(scores, list("abcde"), min_seconds=min_seconds)
    found = sorted((round(a, 6), round(b, 6), c) for a, b, c in found)
    assert found == brute_events(scores, list("abcde"), min_seconds) and len(found) > 20


def test_shortest_events_are_the_papers():
    """125 ms keep five frames and drop four; 50 ms keep three and drop two."""
    for seconds, keeps in ((0.125, 5), (0.05, 3)):
        for frames in (keeps - 1, keeps):
            scores = np.zeros((50, 1))
            scores[10 : 10 + frames] = 1
            found = hear.detect(scores, ["a"], min_seconds=seconds)
            assert len(found) == (frames == keeps)
    assert found == [(pytest.approx(0.42), pytest.approx(0.5), "a")]


def test_perfect_scores_give_a_perfect_f_measure(sets):
    """The labels of the files, fed back as scores, find every onset within 50 ms."""
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    pool, run = problem.pools["files"], problem.runs[0]
    predictions = {}
    for i in run.test.clips:
        frames = np.zeros((-(-int(pool.samples[i]) // 640), len(CLASSES)))
        for k in range(pool.start[i], pool.start[i + 1]):
            frames[pool.begin[k] : pool.end[k], pool.label[k]] = 1
        predictions[pool.ids[i]] = frames
    metrics = problem.score(predictions)
    assert metrics["value"] == 1.0 and metrics["reference_events"] == metrics["detected_events"] == 40
    silent = problem.score({name: np.zeros_like(values) for name, values in predictions.items()})
    assert silent["value"] == 0.0


def test_the_released_threshold_is_one_half_on_logits(sets):
    """A logit of 0.4 is above the probability 0.5, a logit of 0.6 is above both thresholds."""
    problem = {
        at: tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1], median_seconds=0.0, threshold=at))
        for at in (0.5, 1 / (1 + np.exp(-0.5)))
    }
    logits = np.full((250, 4), -5.0, np.float32)
    logits[50:100, 0], logits[150:200, 1] = 0.4, 0.6
    found = [one.score({"test_0.wav": 1 / (1 + np.exp(-logits))})["detected_events"] for one in problem.values()]
    assert found == [2.0, 1.0]


def test_hear_splits_and_folds(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[4, 5]))
    assert [run.seed for run in problem.runs] == [4, 5]
    pool = problem.pools["files"]
    assert {pool.ids[i][:5] for i in problem.runs[0].train[0].clips} == {"train"}
    assert {pool.ids[i][:4] for i in problem.runs[0].test.clips} == {"test"}
    folds = tasks.load("MAESTRO", Task(data=str(sets / "maestro"), seeds=[1])).runs
    assert len(folds) == 5 and len({run.seed for run in folds}) == 5
    for f, run in enumerate(folds):
        assert run.test.clips.tolist() == [f]
        assert set(run.train[0].clips.tolist()) == set(range(5)) - {f, (f + 1) % 5}


def test_notes_that_touch_are_scored_as_annotated(tmp_path):
    """Repeated notes are one run of label frames, but stay two events of the reference."""
    root = write_hear(tmp_path / "set", {"train": 1, "valid": 1, "test": 1}, seconds=10)
    path = root / "test.json"
    content = json.loads(path.read_text())
    notes = [{"label": 61, "start": 1000, "end": 1500}, {"label": 61, "start": 1500, "end": 2000}]
    path.write_text(json.dumps(dict.fromkeys(content, notes)))
    problem = tasks.load("DC16-T2", Task(data=str(root), seeds=[1]))
    scores = np.zeros((250, len(CLASSES)))
    scores[25:50, 1] = 1
    metrics = problem.score({"test_0.wav": scores})
    assert metrics["reference_events"] == 2 and metrics["recall"] == 0.5


def test_desed_reader(sets):
    problem = tasks.load("DESED", Task(data=str(sets / "desed"), seeds=[1], head="attention"))
    assert problem.classes.names == CLASSES and problem.objective == "both"
    assert {name: len(pool) for name, pool in problem.pools.items()} == {"synthetic": 16, "validation": 10, "weak": 12}
    assert problem.pools["synthetic"].has_frames.all() and not problem.pools["weak"].has_frames.any()
    truth = problem.pools["validation"].ground_truth()
    scores = {}
    for name, events in truth.items():
        scores[name] = np.zeros((250, 4), np.float32)
        for onset, offset, label in events:
            scores[name][round(onset * 25) : round(offset * 25), CLASSES.index(label)] = 1
    metrics = problem.score(scores)
    assert metrics["psds1_without_penalty"] == pytest.approx(1.0) and metrics["value"] == pytest.approx(1.0)


def test_desed_rows(tmp_path):
    tsv = tmp_path / "v.tsv"
    tsv.write_text("filename\tonset\toffset\tevent_label\na.wav\t0.0\t1.5\tDog\nb.wav\t\t\t\n")
    assert desed.read_strong(tsv) == {"a.wav": [(0.0, 1.5, "Dog")], "b.wav": []}
    for line, message in (("a.wav\tx\t1\tDog", "line 2"), ("a.wav\t2\t1\tDog", "line 2")):
        tsv.write_text("filename\tonset\toffset\tevent_label\n" + line + "\n")
        with pytest.raises(UserError, match=message):
            desed.read_strong(tsv)
    tsv.write_text("file,onset\n")
    with pytest.raises(UserError, match="columns filename"):
        desed.read_strong(tsv)


def test_desed_without_some_real_clips_goes_on_and_says_so(tmp_path, capsys):
    root = write_desed(tmp_path / "set", weak=4, synthetic=4, validation=4)
    (root / "audio/validation/validation/validation_0.wav").unlink()
    problem = tasks.load("DESED", Task(data=str(root), seeds=[1]))
    assert len(problem.pools["validation"]) == 3 and "3 of 4 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "test.json").write_text("{"), "not JSON"),
        (lambda root: (root / "test.json").write_text("{}"), "no files"),
        (lambda root: (root / "16000/test/test_0.wav").unlink(), "test_0.wav"),
        (lambda root: (root / "labelvocabulary.csv").write_text("idx,label\n0,60\n2,61\n"), "count from 0"),
        (lambda root: (root / "labelvocabulary.csv").write_text("idx,label\n0,60\n"), "lacks"),
        (
            lambda root: (root / "test.json").write_text('{"test_0.wav": [{"label": 60, "start": 5, "end": 1}]}'),
            "from 5.0 to 1.0 ms",
        ),
    ],
)
def test_broken_hear_data_is_refused(tmp_path, change, message):
    root = write_hear(tmp_path / "set", {"train": 1, "valid": 1, "test": 1}, seconds=1, events=1)
    change(root)
    with pytest.raises(UserError, match=message):
        tasks.load("DC16-T2", Task(data=str(root), seeds=[1]))


def test_unknown_tasks_modes_and_folders_are_named(tmp_path, checkpoint):
    with pytest.raises(UserError, match="DC16-T2"):
        tasks.load("DCASE", Task(data=str(tmp_path)))
    with pytest.raises(UserError, match="no such folder"):
        tasks.load("DESED", Task(data=str(tmp_path / "none")))
    with pytest.raises(UserError, match="modes"):
        tasks.run("DESED", Task(), "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv", modes=["linear"])


def test_audio_is_decoded_once_at_any_rate_and_again_when_it_changes(tmp_path):
    draw = np.random.default_rng(0)
    wave = draw.uniform(-0.5, 0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="PCM_16")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    soundfile.write(tmp_path / "b.flac", np.stack([tone, tone], 1), 48_000)
    files = {"b": tmp_path / "b.flac", "a": tmp_path / "a.wav"}
    cache = tmp_path / "cache.h5"
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda _: Audio(files, cache), range(3)))
    assert many[0].ids == ["a", "b"] and many[0].samples.tolist() == [16_000, 16_000]
    np.testing.assert_array_equal(many[0][0], soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(many[2][1][500:-500] / 32768, expected[500:-500], atol=2e-3)
    before = cache.stat().st_mtime_ns
    assert Audio(files, cache).ids == ["a", "b"] and cache.stat().st_mtime_ns == before
    soundfile.write(tmp_path / "a.wav", wave[:8_000], 16_000, subtype="PCM_16")
    assert Audio(files, cache).samples.tolist() == [8_000, 16_000]
