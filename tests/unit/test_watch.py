"""Trainings that are watched on held-out clips, and the scores of Step 2."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_audioset import CLASSES, SIZES, train_job, write_audioset, write_step1
from test_pipeline import reference_names

from framekd import checkpoints, tables
from framekd.config import LABEL_FILES, External, UserError, Watch, WeakRecipe
from framekd.data import Arrays, labelled
from framekd.jobs import CheckpointJob, EvaluateStep2Job, Step2Job
from framekd.labels import ClassList, known_weak
from framekd.losses import bce
from framekd.models import build_model
from framekd.pipeline import watch as watching
from framekd.pipeline.checkpoints import make_checkpoints
from framekd.pipeline.evaluate import evaluate_step2, score
from framekd.pipeline.train import strong_clips, train_strong, train_weak
from framekd.report.page import learnt_nothing
from framekd.train import WatchedClips

ROOT = Path(__file__).parents[2]
WATCH = Watch(every_epochs=1, clips=64, learnt_by=0.5)


def set_of(count):
    """Clips without audio, each with one event."""
    names = [f"clip{i:04d}" for i in range(count)]
    audio = Arrays([np.zeros(16, np.int16)] * count)
    return labelled(names, audio, ClassList.of(["a", "b"]), events={name: [(0.0, 2.5, "a")] for name in names})


def test_the_watched_clips_are_the_same_in_every_training_and_are_not_trained_on():
    clips = set_of(2000)
    kept, sample = watching.hold_out(clips, None, WATCH)
    again = watching.hold_out(clips, set_of(0), WATCH)[1]
    assert len(sample) == 64 and len(kept) == 1936 and not set(kept.ids) & set(sample.ids)
    assert sample.ids == again.ids


def test_validation_clips_are_watched_where_there_are_any():
    clips, validation = set_of(300), set_of(100)
    kept, sample = watching.hold_out(clips, validation, WATCH)
    assert kept is clips and len(sample) == 64 and set(sample.ids) <= set(validation.ids)


def test_a_small_set_is_trained_on_whole_and_says_so(capsys):
    clips = set_of(240)
    assert watching.hold_out(clips, None, WATCH) == (clips, None)
    assert watching.hold_out(clips, set_of(12), WATCH) == (clips, None)
    said = capsys.readouterr().out
    assert "5% of 240 clips are fewer than the 64" in said and "12 validation clips" in said
    assert watching.hold_out(set_of(2000), None, Watch(every_epochs=0))[1] is None and not capsys.readouterr().out


def test_the_loss_of_constant_predictions_is_that_of_a_model_that_gives_them():
    clips = set_of(8)
    bias = torch.from_numpy(clips.log_odds()).float()
    labels = torch.zeros(8, 2, 250)
    labels[:, 0, :63] = 1.0  # frame 62 is active for half of its 40 ms
    expected = bce(bias[None, :, None].expand(8, 2, 250), labels)
    assert watching.constant_loss(clips, clips) == pytest.approx(float(expected), abs=2e-3)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A small AudioSet of which 8 of 40 clips may be watched."""
    monkeypatch.setattr(watching, "FEWEST", 1)
    monkeypatch.setattr(watching, "LARGEST_SHARE", 0.5)
    return {**write_audioset(tmp_path / "data", train=40), "weights": [write_step1(tmp_path)]}


def small_watch(**values):
    return Watch.model_construct(**{"every_epochs": 1, "clips": 8, "learnt_by": 0.5} | values)


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_watched_training_has_its_scores_in_the_history_and_keeps_the_last_weights(inputs, tmp_path):
    job = train_job(learning_rate=1e-3, epochs=3).model_copy(update={"watch": small_watch()})
    train_strong(job, inputs=inputs, weights=[str(tmp_path / "run" / "model.safetensors")])
    lines = [line for line in history(tmp_path / "run") if "watch/psds1" in line]
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert ["watch/learnt" in line for line in lines] == [False, True, True]

    # the last line is the score of the checkpoint that was kept, by the evaluation's own scorer
    model, spec = checkpoints.load_checkpoint(tmp_path / "run")
    sample = watching.hold_out(strong_clips(inputs), None, job.watch)[1]
    found, _ = score([model], sample, median_seconds=0.48, batch_size=8)
    assert lines[-1]["watch/psds1"] == pytest.approx(found[0].at(0.0), abs=1e-9)
    assert spec["provenance"]["step"] == 15


def test_a_training_that_learns_nothing_says_so(inputs, tmp_path, capsys):
    job = train_job(learning_rate=1e-12, epochs=2).model_copy(update={"watch": small_watch()})
    train_strong(job, inputs=inputs, weights=[str(tmp_path / "run" / "model.safetensors")])
    assert [line["watch/learnt"] for line in history(tmp_path / "run") if "watch/learnt" in line] == [0.0, 0.0]
    said = capsys.readouterr().out
    assert "WARNING" in said and "has learnt nothing after 5 of 10 steps: on 8 clips held out" in said
    assert str(tmp_path / "run") in said


@pytest.mark.parametrize(
    ("metrics", "step", "warned"),
    [
        ({"watch/psds1": 0.1, "watch/loss": 0.02}, 90, False),
        ({"watch/psds1": 0.0, "watch/loss": 0.02}, 90, True),
        ({"watch/psds1": 0.1, "watch/loss": 0.04}, 90, True),
        ({"watch/psds1": 0.0, "watch/loss": 0.04}, 20, False),
        ({"watch/map": 0.01, "watch/loss": 0.02}, 90, False),
        ({"watch/map": 0.0}, 90, True),  # weights that are not finite have no loss
    ],
)
def test_when_a_model_has_learnt_nothing(metrics, step, warned):
    watch = WatchedClips(lambda model: {}, constant_loss=0.03, learnt_by=0.3, clips=500)
    assert (watch.warning(metrics, step=step, total=100) is not None) == warned
    learnt = watch.judge(metrics, step=step, total=100).get("watch/learnt")
    assert learnt == (None if step < 30 else float(not warned))


def test_the_report_names_runs_that_have_learnt_nothing():
    good = pd.DataFrame({"watch/learnt": [np.nan, 0.0, 1.0]}, index=[1, 2, 3])
    bad = pd.DataFrame({"watch/learnt": [np.nan, 1.0, 0.0]}, index=[1, 2, 3])
    runs = {("proposed", "BEATs", "seed1"): bad, ("proposed", "M2D", "seed1"): good}
    said = ["teachers, proposed, BEATs, seed1: has learnt nothing by step 3; see its log"]
    assert learnt_nothing("teachers", runs) == said


# Step 2 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def weak(inputs, tmp_path):
    """The same clips with weak labels: 40 to train on, 8 to evaluate."""
    labels, classes = tmp_path / "data" / "labels", known_weak()
    rows = [f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(zip(classes.mids, classes.names))]
    (labels / LABEL_FILES["class_labels"]).write_text("index,mid,display_name\n" + "".join(rows))
    found = {"class_labels": str(labels / LABEL_FILES["class_labels"])}
    for name, part in (("balanced_train", range(40)), ("eval", range(40, 48))):
        lines = [f'vid_{i:07d}, 30.000, 40.000, "{classes.mids[i % CLASSES]}"\n' for i in part]
        found[name] = str(labels / LABEL_FILES[name])
        (labels / LABEL_FILES[name]).write_text("# Segments\n" + "".join(lines))
    return inputs | found | {"segments": [found["balanced_train"]], "eval_segments": found["eval"]}


def evaluate(weak, folder, *, source, out):
    job = EvaluateStep2Job(version=1, model="fPaSST", source=source, batch_size=4)
    evaluate_step2(job, inputs=weak | {"weights": str(folder / "model.safetensors")}, out=str(out))
    return pd.read_csv(out, keep_default_na=False).iloc[0]


def test_step_2_is_watched_and_scored(weak, tmp_path):
    recipe = WeakRecipe(epochs=2, epoch_clips=20, batch_size=4, warmup_steps=2, head_init="prior", learning_rate=1e-3)
    job = Step2Job(version=1, recipes={"tiny": recipe}, seed=1, watch=small_watch())
    train_weak(job, inputs=weak, weights=[str(tmp_path / "step2" / "model.safetensors")])
    lines = [line for line in history(tmp_path / "step2") if "watch/map" in line]
    assert [line["step"] for line in lines] == [5, 10] and all(0 < line["watch/map"] <= 1 for line in lines)
    row = evaluate(weak, tmp_path / "step2", source="trained here", out=tmp_path / "map.csv")
    assert (row["clips"], row["classes"], row["note"]) == (8, CLASSES, "") and 0 < float(row["map"]) <= 1


@pytest.mark.parametrize(
    ("outputs", "note"),
    [(527, ""), (None, "no head in the file"), (10, "the head in the file is [10, 32], not [527, 32]")],
)
def test_a_published_file_is_scored_by_its_clip_head_or_says_that_it_has_none(weak, tmp_path, outputs, note):
    sizes = {"width": 32, "depth": 1, "heads": 2}
    theirs = build_model("fPaSST", n_classes=447, n_clip_classes=outputs or 1, sizes=sizes)
    theirs.init_weights(torch.Generator().manual_seed(1))
    state = {f"model.fpasst.{ours}": value for ours, value in reference_names(theirs).items()}
    heads = (("strong_head", theirs.frame_head), ("weak_head", theirs.clip_head if outputs else None))
    state |= {f"{name}.{key}": value for name, head in heads if head for key, value in head.state_dict().items()}
    torch.save(state, tmp_path / "fpasst_weak.pt")
    published = {"fPaSST": External(url=(tmp_path / "fpasst_weak.pt").as_uri())}
    job = CheckpointJob(
        version=1, step="step2", models=["fPaSST"], sizes={"fPaSST": sizes},
        published=published, front_ends={"fPaSST": {}}, seed=None,
        downloads=str(tmp_path / "kept"),
    )  # fmt: skip
    make_checkpoints(job, weights=[str(tmp_path / "fPaSST" / "model.safetensors")])
    made, spec = checkpoints.load_checkpoint(tmp_path / "fPaSST")
    row = evaluate(weak, tmp_path / "fPaSST", source="published", out=tmp_path / "fPaSST.csv")
    assert (row["source"], row["note"], row["clips"]) == ("published", note, 8)
    if outputs == 527:
        assert torch.equal(made.clip_head.weight, theirs.clip_head.weight) and 0 < float(row["map"]) <= 1
        assert tuple(spec["clip_classes"]) == known_weak().names
    else:
        assert row["map"] == "" and row["classes"] == 0


def test_step_2_has_a_table_beside_the_papers_numbers(tmp_path):
    about = {"clips": 20371, "classes": 527}
    rows = [
        {
            "model": "BEATs",
            "source": "published",
            "map": None,
            "clips": 20371,
            "classes": 0,
            "note": "no head in the file",
        },
        {"model": "fPaSST", "source": "trained here", "map": 0.481, **about, "note": None},
        {"model": "M2D", "source": "published", "map": 0.45, **about, "note": None},
    ]
    paths = []
    for row in rows:
        paths.append(tmp_path / f"{row['model']}.csv")
        pd.DataFrame([row]).to_csv(paths[-1], index=False)
    published = ROOT / "config" / "published"
    frame = tables.write_table(
        "step2", paths, tmp_path / "step2.csv", miniature=True, published_dir=published
    ).set_index("model")
    assert frame.loc["fPaSST", ["map", "published", "difference"]].tolist() == pytest.approx([48.1, 48.4, -0.3])
    assert np.isnan(frame.loc["BEATs", "map"]) and np.isnan(frame.loc["M2D", "published"])
    text = (tmp_path / "step2.md").read_text()
    assert "| fPaSST | trained here | 48.1 (48.4, −0.3) | 20371 |" in text and "not comparable" in text
    assert "| BEATs | published | no head in the file | 20371 |" in text and (tmp_path / "step2.tex").is_file()
    assert list(pd.read_csv(tmp_path / "step2.csv").columns[:5]) == [
        "model",
        "source",
        "map",
        "published",
        "difference",
    ]
    assert pd.read_csv(published / "step2.csv").set_index("model")["published"].to_dict() == {
        "fPaSST": 48.4,
        "ASiT": 49.8,
    }


def test_a_checkpoint_of_other_classes_is_refused(weak, tmp_path):
    model = build_model("tiny", n_classes=3, sizes=SIZES)
    checkpoints.save_checkpoint(tmp_path / "other", model, classes=["a", "b", "c"], provenance={})
    with pytest.raises(UserError, match="no clip predictions of 527 classes, such as 'Speech'"):
        evaluate(weak, tmp_path / "other", source="trained here", out=tmp_path / "map.csv")
