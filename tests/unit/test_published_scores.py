"""The table of the published models: the real scoring on a small store, from a file in the authors' layout."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from release_server import release_server
from released_files import drawn_model, save_as_theirs
from small_audioset import write_audioset

from framekd import tables
from framekd.config import UserError
from framekd.jobs import CheckpointJob, EvaluatePublishedJob, External, TableJob
from framekd.labels import known_strong
from framekd.pipeline import published
from framekd.pipeline.checkpoints import make_checkpoints
from framekd.pipeline.published import evaluate_published, shared_clips
from framekd.pipeline.tables import write_table

SIZES = {"width": 32, "depth": 1, "heads": 2}
JOB = EvaluatePublishedJob(version=1, model="ATST-F", median_seconds=0.48, batch_size=4, cross_check=2)


def checkpoint_job(url: str, folder: Path) -> CheckpointJob:
    return CheckpointJob(
        version=1,
        step="step3",
        models=["ATST-F"],
        sizes={"ATST-F": SIZES},
        front_ends={"ATST-F": {}},
        published={"ATST-F": External(url=url)},
        seed=None,
        downloads=str(folder / "downloads"),
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A small AudioSet Strong whose class list is the published one, and the checkpoint of a "published" model."""
    folder = tmp_path_factory.mktemp("published")
    inputs = write_audioset(folder / "data")
    names = known_strong()[0]  # every class occurs in the training labels, as in the real files
    labels = Path(inputs["train_strong"])
    clip = labels.read_text().splitlines()[1].split("\t")[0]
    labels.write_text(labels.read_text() + "".join(f"{clip}\t9.0\t9.1\t{mid}\n" for mid in names.mids))
    table = "".join(f"{mid}\t{name}\n" for mid, name in zip(names.mids, names.names))
    Path(inputs["mid_to_display_name"]).write_text(table)
    theirs = save_as_theirs(drawn_model("ATST-F", 447, SIZES), folder / "ATST-F_strong_1.pt")
    weights = folder / "step3" / "model.safetensors"
    make_checkpoints(checkpoint_job(theirs.as_uri(), folder), weights=[str(weights)])
    return folder, inputs | {"weights": str(weights), "clips": []}


def test_published_models_are_scored_on_all_and_on_shared_clips(site, tmp_path):
    folder, inputs = site
    evaluate_published(JOB, inputs=inputs, out=str(tmp_path / "ATST-F.csv"))
    [alone] = pd.read_csv(tmp_path / "ATST-F.csv").to_dict("records")
    assert alone["model"] == "ATST-F" and 0 <= alone["psds1"] <= 1 and alone["clips"] == 8
    assert pd.isna(alone["psds1_shared"]) and alone["clips_shared"] == 0 and "published: {clips: FILE}" in alone["note"]

    theirs = folder / "theirs.csv"
    theirs.write_text("".join(f"Yvid_{i:07d},10.0\n" for i in range(27, 40)))  # five of ours, and others
    evaluate_published(JOB, inputs=inputs | {"clips": [str(theirs)]}, out=str(tmp_path / "shared.csv"))
    [both] = pd.read_csv(tmp_path / "shared.csv").to_dict("records")
    assert both["psds1"] == alone["psds1"] and both["clips_shared"] == 5 and pd.isna(both["note"])

    theirs.write_text("".join(f"vid_{i:07d}\n" for i in range(24, 32)))  # all of ours: the same score
    evaluate_published(JOB, inputs=inputs | {"clips": [str(theirs)]}, out=str(tmp_path / "all.csv"))
    [same] = pd.read_csv(tmp_path / "all.csv").to_dict("records")
    assert same["psds1_shared"] == same["psds1"] == alone["psds1"] and same["clips_shared"] == 8

    for name, words in (("ATST-F", "Shared clips: no list"), ("all", "Shared clips are those")):
        job = TableJob(version=1, table="published", settings=[], miniature=False)
        write_table(job, scores=[str(tmp_path / f"{name}.csv")], csv=str(tmp_path / "published.csv"))
        [row] = pd.read_csv(tmp_path / "published.csv").to_dict("records")
        assert row["published"] == 45.8 and row["difference"] == pytest.approx(100 * alone["psds1"] - 45.8, abs=1e-3)
        assert words in (tmp_path / "published.md").read_text() and (tmp_path / "published.tex").is_file()
    assert tables.TITLES["published"] in (tmp_path / "published.md").read_text()


def test_what_is_not_the_checkpoint_is_one_sentence_and_the_next_run_goes_on(tmp_path):
    weights = tmp_path / "step3" / "model.safetensors"
    with release_server(tmp_path / "site") as server:
        file = save_as_theirs(drawn_model("ATST-F", 447, SIZES), server.folder / "v0.0.1" / "ATST-F_strong_1.pt")
        job = checkpoint_job(f"{server.url}/{file.name}", tmp_path)
        for fault, words in (
            ("page", "a web page came instead of the file"),
            ("hidden page", "what came is not the checkpoint and was removed"),
            ("shorter than it is", "what came is not the checkpoint and was removed"),
        ):
            server.faults += [fault]
            with pytest.raises(UserError, match=words):
                make_checkpoints(job, weights=[str(weights)])
            assert not weights.exists() and not list((tmp_path / "downloads").glob("*.pt*"))
        server.faults += ["breaks off"]
        make_checkpoints(job, weights=[str(weights)])
        assert weights.is_file() and server.asked[-1][1].startswith("bytes=")
        save_as_theirs(drawn_model("ASiT", 447, SIZES), tmp_path / "downloads" / file.name)  # laid there by hand
        (tmp_path / "downloads" / f"{file.name}.sha256").unlink()
        with pytest.raises(UserError, match=rf"downloads/{file.name}: These weights are not ATST-F's"):
            make_checkpoints(job, weights=[str(weights)])
        assert (tmp_path / "downloads" / file.name).is_file()


@pytest.mark.parametrize(
    "line", ["{v}", "{v}_30000", "Y{v}", "Y{v}.mp3", "Y{v},10.0", "{v}_30000\t0.1\tx", "Y{v}_30000.flac"]
)
def test_a_list_may_name_clips_in_any_usual_way(tmp_path, line):
    path = tmp_path / "list"
    videos = ["a_b-c_d-e_f", "Yabcdefghij", "-0123456789"]
    path.write_text("filename\n" + "".join(line.format(v=video) + "\n" for video in videos))
    ids = [f"{video}_{start}" for start, video in enumerate([*videos, "unknown0000"])]
    assert shared_clips(path, ids) == set(ids[:3])


def test_a_list_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"published\.clips: .* does not exist"):
        shared_clips(tmp_path / "nothing", [])
    (tmp_path / "list").write_text("a\nb\n")
    with pytest.raises(UserError, match="names none of this site's evaluation clips"):
        shared_clips(tmp_path / "list", ["a_b-c_d-e_f_0"])
    assert published.NO_LIST.endswith(".")
