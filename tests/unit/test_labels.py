"""AudioSet's label formats: real rows parse, malformed ones are named by line, class lists are the published ones."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framekd import events, labels
from framekd.config import UserError

HEADER = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"


def strong_file(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "".join(row + "\n" for row in rows))
    return path


def test_ids_with_underscores_and_leading_hyphens():
    assert labels.parse_clip_id("--a_b_c_d_e_30000") == ("--a_b_c_d_e", 30000)
    assert labels.parse_clip_id("_" * 11 + "_0") == ("_" * 11, 0)
    assert labels.clip_id("-rfAbCdEf12", 0) == "-rfAbCdEf12_0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc_0",
        "../../../etc_0",
        "-rf",
        "x" * 300,
        "abcdefghijk_",
        "abcdefghijk_01",
        "abcdefghijk_1.5",
        "ä" * 11 + "_0",
    ],
)
def test_what_is_no_clip_id_is_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match="is not a segment id") as error:
        labels.parse_clip_id(text)
    assert len(str(error.value)) < 200


@given(st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True), st.integers(0, 999_999_999))
def test_clip_ids_survive_the_round_trip(ytid, start):
    assert labels.parse_clip_id(labels.clip_id(ytid, start)) == (ytid, start)


def test_strong_rows(tmp_path):
    found = labels.read_strong(
        strong_file(
            tmp_path / "s.tsv",
            "-THl_72tO8I_4000\t3.807\t6.338\t/t/dd00002",
            "006SLC2yxCk_2000\t0.0\t0.29\t/m/032s66",
            "-THl_72tO8I_4000\t7.0\t7.0\t/m/032s66",
        )
    )
    assert found.clips == ["-THl_72tO8I_4000", "006SLC2yxCk_2000"]
    assert found.labels == ["/t/dd00002", "/m/032s66"]
    assert found.clip.tolist() == [0, 1, 0]
    assert found.label.tolist() == [0, 1, 1]
    assert found.onset.tolist() == [3.807, 0.0, 7.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abcdefghijk_0\t1\t2", "expected 4 columns, not 3"),
        ("abcdefghijk_0\t1\t2\t/m/0\t9", "expected 4 columns, not 5"),
        ("abcdefghijk_0\t2\t1\t/m/0", "an event from 2 to 1 s is impossible"),
        ("abcdefghijk_0\t-1\t1\t/m/0", "is impossible"),
        ("abcdefghijk_0\tnan\t1\t/m/0", "is impossible"),
        ("abcdefghijk_0\t0\tinf\t/m/0", "is impossible"),
        ("abcdefghijk_0\tone\t1\t/m/0", "could not convert"),
        ("abcdefghijk_0\t0\t1\tSpeech", "is not a class id"),
        ("../abcdefgh_0\t0\t1\t/m/0", "is not a segment id"),
    ],
)
def test_a_malformed_strong_row_is_named(tmp_path, row, message):
    path = strong_file(tmp_path / "s.tsv", "abcdefghijk_0\t0\t1\t/m/0", row)
    with pytest.raises(UserError, match=f"s.tsv: line 3: .*{message}"):
        labels.read_strong(path)


def test_missing_binary_and_headless_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="no such label file"):
        labels.read_strong(tmp_path / "none.tsv")
    (tmp_path / "b.tsv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a text file"):
        labels.read_strong(tmp_path / "b.tsv")
    (tmp_path / "h.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match="line 1: expected the tab-separated columns"):
        labels.read_strong(tmp_path / "h.tsv")


def test_weak_rows(tmp_path):
    path = tmp_path / "w.csv"
    path.write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n_a_b-c_d_e_, 0.000, 7.520, "/m/05zppz,/m/09x0r,/m/09x0r"\n'
    )
    found = labels.read_weak_segments(path)
    assert found.clips == ["--PJHxphWEs_30000", "_a_b-c_d_e__0"]
    assert found.end_ms.tolist() == [40000, 7520]
    assert [found.labels[i] for i in found.label[found.start[1] : found.start[2]]] == ["/m/05zppz", "/m/09x0r"]
    path.write_text('abcdefghijk, 30.000, 40.000, "/m/09x0r"\nabcdefghijk, 30.000, 40.000, "/m/09x0r"\n')
    with pytest.raises(UserError, match="line 2: clip abcdefghijk_30000 occurs twice"):
        labels.read_weak_segments(path)
    path.write_text("abcdefghijk 30.000\n")
    with pytest.raises(UserError, match="line 1: expected YTID, start, end"):
        labels.read_weak_segments(path)


def test_published_vocabulary():
    train, evaluated, common = labels.known_strong()
    assert (len(train), len(evaluated), len(common)) == labels.PUBLISHED_COUNTS
    for classes in (train, evaluated, common):
        assert list(classes.names) == sorted(classes.names)
    assert set(common.mids) == set(train.mids) & set(evaluated.mids)
    assert len(set(train.mids) - set(evaluated.mids)) == 40
    assert len(set(evaluated.mids) - set(train.mids)) == 9
    weak = labels.known_weak()
    assert len(weak) == 527
    assert weak.mids[:2] == ("/m/09x0r", "/m/05zppz")


@pytest.mark.parametrize(
    ("read", "start"),
    [
        (labels.read_strong, HEADER),
        (labels.read_weak_segments, "# c\n"),
        (labels.read_display_names, ""),
        (labels.read_weak_classes, "index,mid,display_name\n"),
    ],
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from('abk_-09./\t\n, "\r\x00\x85é'), max_size=60))
def test_no_text_does_more_than_a_sentence(tmp_path, read, start, text):
    path = tmp_path / "f"
    path.write_text(start + text, newline="")
    with contextlib.suppress(UserError):
        read(path)


def strong_pair(folder: Path, train: list[str], evaluated: list[str]) -> tuple[Path, Path, Path]:
    rows = [[f"abcdefghijk_{i}\t0\t1\t{mid}" for i, mid in enumerate(mids)] for mids in (train, evaluated)]
    names = {mid: name for c in labels.known_strong() for mid, name in zip(c.mids, c.names)}
    (folder / "names.tsv").write_text("".join(f"{mid}\t{name}\n" for mid, name in names.items()))
    return strong_file(folder / "t.tsv", *rows[0]), strong_file(folder / "e.tsv", *rows[1]), folder / "names.tsv"


def test_derived_lists_equal_the_published_ones_and_a_difference_is_refused(tmp_path):
    known = labels.known_strong()
    rng = np.random.default_rng(0)
    train, evaluated = (list(rng.permutation(c.mids)) for c in known[:2])
    assert labels.strong_classes(*strong_pair(tmp_path, train, evaluated)) == known
    with pytest.raises(UserError, match=r"has 446 classes where 447 are published \(missing: .*expected_classes: null"):
        labels.strong_classes(*strong_pair(tmp_path, train[1:], evaluated))
    files = strong_pair(tmp_path, train[:30], evaluated[:20])
    assert len(labels.strong_classes(*files, expected=None)[0]) == 30
    with pytest.raises(UserError, match=r"write audioset: \{expected_classes: \[30, 20, "):
        labels.strong_classes(*files, expected=(30, 20, 99))


def test_class_lists_refuse_doubles_and_find_positions():
    with pytest.raises(ValueError, match="occur twice: a"):
        labels.ClassList(("x", "y"), ("a", "a"))
    classes = labels.ClassList.of(["dog", "cat", "cow"])
    assert classes.positions(["cow", "bee", "dog"]).tolist() == [2, -1, 0]
    assert classes.select({"cow", "dog"}).names == ("dog", "cow")


META = os.environ.get("FRAMEKD_AUDIOSET_META")
needs_meta = pytest.mark.skipif(
    not META, reason="needs AudioSet's metadata: set FRAMEKD_AUDIOSET_META to a folder that holds them"
)


@needs_meta
def test_real_rows_and_class_lists():
    meta = Path(META)
    lists = json.loads((meta / "class_lists.json").read_text())
    train, evaluated, common = labels.known_strong()
    assert list(train.names) == lists["train447"]
    assert list(evaluated.names) == lists["eval416"]
    assert list(common.names) == lists["intersection407"]
    names = labels.read_display_names(meta / "mid_to_display_name.tsv")
    assert {mid: names[mid] for mid in train.mids} == dict(zip(train.mids, train.names))
    assert labels.read_weak_classes(meta / "class_labels_indices.csv") == labels.known_weak()
    total = 0
    for path in sorted((meta / "strong_subset").glob("*_strong.tsv")):
        found = labels.read_strong(path)
        known = train if "train" in path.name else evaluated
        assert set(found.labels) <= set(known.mids)
        merged = events.merge_events(found.clip, found.label, found.onset, found.offset)
        assert len(found) - 3 <= len(merged[0]) <= len(found)
        assert len(found) == len(path.read_text().splitlines()) - 1
        total += len(found)
    assert total > 9000


@needs_meta
def test_the_class_weights_of_the_sampler_follow_from_active_time():
    """The published active seconds per class, as frames, give every training class a weight, rare ones the largest."""
    train = labels.known_strong()[0]
    with (Path(META) / "strong_train_label_stats.csv").open() as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    seconds = np.array([float(rows[mid]["total_duration_seconds"]) for mid in train.mids])
    weights = events.class_weights(seconds * events.FRAME_RATE)
    assert weights.shape == (447,)
    assert train.names[int(weights.argmin())] == "Mechanisms"
    assert weights.min() == pytest.approx(1000 / (30 + 242315.553 * 25))
    assert weights.max() == pytest.approx(1000 / (30 + 0.45 * 25), rel=0.02)
    assert (np.diff(weights[np.argsort(seconds)]) <= 0).all()
