"""AudioSet in: label files, the plan, and the check before training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import misbehaving_server as host
import numpy as np
import pytest

from framekd.acquire import check_coverage, fetch_labels, plan_clips, shard_of
from framekd.config import GROUPS, LABEL_FILES, UserError
from framekd.labels import known_strong
from framekd.manifest import Entry, State, read_clips, write_manifest


def video(number: int) -> str:
    return f"-vid_{number:06d}"


# Labels and plan ----------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path) -> Path:
    """A small AudioSet in the published formats: 3 strong training clips, 1 evaluation clip, 3 weak ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    header = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    names = known_strong()[2]
    rows = [f"{video(i)}_{1000 * i}\t0.5\t1.5\t{names.mids[i % 2]}\n" for i in range(4)]
    (folder / LABEL_FILES["train_strong"]).write_text(header + "".join(rows[:3]))
    (folder / LABEL_FILES["eval_strong"]).write_text(header + rows[3])
    (folder / LABEL_FILES["mid_to_display_name"]).write_text(
        "".join(f"{names.mids[i]}\t{names.names[i]}\n" for i in range(2))
    )
    (folder / LABEL_FILES["class_labels"]).write_text(
        "index,mid,display_name\n" + "".join(f'{i},{names.mids[i]},"{names.names[i]}"\n' for i in range(2))
    )
    weak = '# comment\n{}, 1.000, 9.500, "{}"\n'
    (folder / LABEL_FILES["balanced_train"]).write_text(weak.format(video(1), names.mids[0]))
    (folder / LABEL_FILES["unbalanced_train"]).write_text(weak.format(video(7), names.mids[0]))
    (folder / LABEL_FILES["eval"]).write_text(weak.format(video(8), names.mids[0]))
    return folder


def files_of(folder: Path) -> dict[str, Path]:
    return {name: folder / file for name, file in LABEL_FILES.items()}


def plan(folder: Path, out: Path, group: str, **changes) -> dict[str, int]:
    options = {"weak_splits": ["balanced_train", "unbalanced_train"], "expected_classes": None, "shards": 1}
    return plan_clips(files_of(folder), out, group=group, **{**options, **changes})


def test_label_files_are_fetched_whole_and_recorded(published, tmp_path):
    urls = {name: (published / file).as_uri() for name, file in LABEL_FILES.items()}
    wanted = files_of(tmp_path / "labels")
    for folder in (None, str(published)):
        out = fetch_labels(wanted, labels_url=urls, labels_dir=folder)
        assert {name: path.read_bytes() for name, path in out.items()} == {
            name: (published / file).read_bytes() for name, file in LABEL_FILES.items()
        }
        record = json.loads((tmp_path / "labels" / "sources.json").read_text())
        path = out["train_strong"]
        assert record[path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    (published / LABEL_FILES["eval"]).unlink()
    with pytest.raises(UserError, match=r"no eval_segments.csv in audioset.labels_dir"):
        fetch_labels(wanted, labels_url=urls, labels_dir=str(published))
    with pytest.raises(UserError, match=r"audioset\.labels_url\.eval: .*labels_dir: FOLDER"):
        fetch_labels(wanted, labels_url=urls, labels_dir=None)
    (published / LABEL_FILES["eval"]).touch()
    for folder in (None, str(published)):
        with pytest.raises(UserError, match="the file is empty"):
            fetch_labels(wanted, labels_url=urls, labels_dir=folder)


def test_label_files_come_over_http_whatever_happens_on_the_way(published, tmp_path, monkeypatch):
    monkeypatch.setattr("framekd.fetch._pause", lambda state: 0.01)
    wanted = files_of(tmp_path / "labels")
    ids = {name: f"label-{i:05d}" for i, name in enumerate(LABEL_FILES)}
    texts = {name: (published / file).read_bytes() for name, file in LABEL_FILES.items()}
    served = {ids[name]: host.body(text, "text/csv") for name, text in texts.items()}

    def troubled(handler, number: int) -> bool:
        kind, whole = "text/csv", texts["train_strong"]
        trouble = [host.status(503), host.truncated(whole, kind), host.body(whole, kind)][min(number, 2)]
        return trouble(handler, number)

    served[ids["train_strong"]] = troubled
    with host.MediaServer({}, served) as server:
        urls = {name: server.url.format(ytid=ytid) for name, ytid in ids.items()}
        out = fetch_labels(wanted, labels_url=urls, labels_dir=None)
        assert {name: path.read_bytes() for name, path in out.items()} == texts
        server.faults[ids["eval"]] = host.body(b"<html>log in</html>", "text/html")
        with pytest.raises(UserError, match=r"labels_url\.eval: .* a web page came instead of the file"):
            fetch_labels(wanted, labels_url=urls, labels_dir=None)
        server.faults[ids["eval"]] = host.status(404)
        with pytest.raises(UserError, match=r"labels_url\.eval: .*404"):
            fetch_labels(wanted, labels_url=urls, labels_dir=None)
    assert out["eval"].read_bytes() == texts["eval"]  # what was there stays


def test_the_plan_has_every_clip_in_one_group_and_a_static_shard(published, tmp_path):
    paths = {group: tmp_path / f"{group}.tsv" for group in GROUPS}
    counts = {group: plan(published, path, group, shards=5) for group, path in paths.items()}
    assert counts == {
        "strong": {"strong_train": 3, "weak_balanced_train": 1},
        "eval": {"strong_eval": 1},
        "weak": {"weak_unbalanced_train": 1, "weak_eval": 1},
    }
    tables = {group: read_clips(path) for group, path in paths.items()}
    found = {c.clip_id: c for table in tables.values() for c in table}
    assert len(found) == sum(map(len, tables.values())) == 6
    assert found[f"{video(1)}_1000"].splits == ("strong_train", "weak_balanced_train")
    assert found[f"{video(1)}_1000"].end_ms == 9500  # the weak file knows the clip's end
    assert found[f"{video(3)}_3000"].end_ms == 13000
    assert all(c.shard == shard_of(c.ytid, 5) for c in found.values())
    for group, table in tables.items():
        assert table == sorted(table, key=lambda c: c.clip_id)
        assert sum(len(read_clips(paths[group], shard=s)) for s in range(5)) == len(table)
    with pytest.raises(UserError, match="447 are published"):
        plan(published, paths["eval"], "eval", expected_classes=(447, 416, 407))


def test_the_weak_lists_of_step2_change_the_weak_group_alone(published, tmp_path):
    for group in GROUPS:
        plan(published, tmp_path / "all.tsv", group)
        plan(published, tmp_path / "one.tsv", group, weak_splits=["balanced_train"])
        same = (tmp_path / "all.tsv").read_bytes() == (tmp_path / "one.tsv").read_bytes()
        assert same == (group != "weak")


def test_shards_are_even():
    counts = np.bincount([shard_of(f"{i:011d}", 200) for i in range(40_000)], minlength=200)
    assert 120 < counts.min() <= counts.max() < 290


# Coverage -----------------------------------------------------------------------------------------------------------


def test_coverage_passes_with_counts_and_stops_with_counts(published, tmp_path):
    clips = []
    for group in GROUPS:
        plan(published, tmp_path / "clips.tsv", group)
        clips += read_clips(tmp_path / "clips.tsv")
    manifest, table = tmp_path / "0000.manifest.tsv", tmp_path / "coverage.tsv"

    def check(*lost: str, split: str = "strong_train", min_share: float = 0.0) -> dict:
        entries = [
            Entry(c.clip_id, c.splits, State.GONE if c.ytid in lost else State.OK, "removed" if c.ytid in lost else "")
            for c in clips
        ]
        write_manifest(manifest, entries)
        return check_coverage([manifest], files_of(published), splits=[split], min_share=min_share, table=table)

    assert check(min_share=1.0) == {"strong_train": {"wanted": 3, "ok": 3}}
    assert check(video(0), min_share=0.66) == {"strong_train": {"wanted": 3, "ok": 2, "gone": 1}}
    rows = table.read_text().splitlines()
    assert "strong_train\t\tgone\t1" in rows and not any(row.startswith(("strong_eval", "weak")) for row in rows)
    assert f"strong_train\t{known_strong()[2].names[0]}\tok\t1" in rows
    with pytest.raises(UserError, match=r"strong_train has no clip for 1 of 2 classes \(.*\).*labels_dir") as error:
        check(video(1))
    assert "min_share" not in str(error.value)
    with pytest.raises(
        UserError,
        match=r"strong_train has 2 of 3 clips \(1 gone\), and audioset.min_share is 0.9; .*"
        r"write audioset: \{min_share: 0.66\}$",
    ):
        check(video(0), min_share=0.9)
    assert "strong_train\t\tgone\t1" in table.read_text()  # the counts are there to be read all the same
    with pytest.raises(UserError, match=r"strong_eval has 0 of 1 clips \(1 gone\)"):
        check(video(3), split="strong_eval")
    assert check(video(0), split="weak_balanced_train")["weak_balanced_train"] == {"wanted": 1, "ok": 1}
    with pytest.raises(UserError, match=r"weak_balanced_train has 0 of 1 clips \(1 gone\)"):
        check(video(1), split="weak_balanced_train")
