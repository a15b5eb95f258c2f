"""Manifests: what is written is read, damage is named, coverage is counted."""

from __future__ import annotations

import pytest

from framekd.config import UserError
from framekd.manifest import (
    RETRYABLE,
    Clip,
    Entry,
    State,
    coverage,
    read_clips,
    read_manifest,
    retryable,
    write_clips,
    write_manifest,
)

ENTRIES = [
    Entry("b_1", ("strong_train", "weak_balanced_train"), State.OK, seconds=9.9876, sha256="ab" * 32, source="folder"),
    Entry("a_1", ("strong_train",), State.GONE, "HTTP 404 Not Found", source="youtube.com"),
    Entry("c_1", ("strong_eval",), State.NETWORK, "timed out"),
]


def test_what_is_written_is_read_sorted(tmp_path):
    write_manifest(tmp_path / "m.tsv", ENTRIES)
    assert read_manifest(tmp_path / "m.tsv") == sorted(ENTRIES, key=lambda e: e.clip_id)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tsv"]


def test_reasons_cannot_break_the_table(tmp_path):
    write_manifest(tmp_path / "m.tsv", [Entry("a_1", ("s",), State.CORRUPT, "two\tcells\nand a line " + "x" * 500)])
    (found,) = read_manifest(tmp_path / "m.tsv")
    assert found.reason.startswith("two cells and a line xx")


def test_clips_by_shard(tmp_path):
    clips = [Clip(f"v{i}_0", f"v{i}", 0, 10_000, ("a", "b")[: 1 + i % 2], i % 3) for i in range(9)]
    write_clips(tmp_path / "c.tsv", clips)
    assert read_clips(tmp_path / "c.tsv") == clips
    assert read_clips(tmp_path / "c.tsv", shard=2) == clips[2::3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: expected the columns clip_id"),
        ("clip_id\tsplits\tstate\treason\tseconds\tsha256\tsource\na\tb\n", "line 2: expected 7 columns, not 2"),
        (
            "clip_id\tsplits\tstate\treason\tseconds\tsha256\tsource\na\ts\tlost\t\t0\t\t\n",
            "line 2: 'lost' is not a valid",
        ),
    ],
)
def test_damage_is_named(text, message, tmp_path):
    (tmp_path / "m.tsv").write_text(text)
    with pytest.raises(UserError, match=f"m.tsv: {message}"):
        read_manifest(tmp_path / "m.tsv")
    with pytest.raises(UserError, match="no such file"):
        read_manifest(tmp_path / "none.tsv")


def test_coverage_counts_states_by_split():
    assert coverage(ENTRIES) == {
        "strong_eval": {"wanted": 1, "ok": 0, "network": 1},
        "strong_train": {"wanted": 2, "ok": 1, "gone": 1},
        "weak_balanced_train": {"wanted": 1, "ok": 1},
    }


def test_what_may_change_is_tried_again_and_what_may_not_is_left():
    assert {s for s in State if retryable(s)} == RETRYABLE
    assert {s.value for s in State if not retryable(s)} == {
        "ok",
        "gone",
        "private",
        "geo",
        "age",
        "corrupt",
        "too_short",
    }
