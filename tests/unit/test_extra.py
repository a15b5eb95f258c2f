"""Own recordings and classes beside AudioSet Strong's: stored, checked before a run, and learnt with soft labels."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch
from small_audioset import train_job, write_audioset, write_step1

from framekd import checkpoints
from framekd.checks import checked
from framekd.cli import main
from framekd.config import UserError, load
from framekd.ensemble import write_ensemble
from framekd.jobs import ExtraJob
from framekd.labels import ClassList, known_strong
from framekd.labels.extra import with_own
from framekd.losses import distillation
from framekd.pipeline.audioset import store_extra
from framekd.pipeline.train import strong_clips, train_strong
from framekd.plan import Plan
from framekd.soft_labels import SoftLabels

JOB = ExtraJob(version=1, audio="", encoding="pcm")


def recording(path: Path, seconds: float, hertz: float, *, rate: int = 22_050) -> None:
    """A stereo file with a tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    soundfile.write(path, np.stack([tone, tone], 1), rate)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The inputs of a training with own recordings; and without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("extra")
    inputs = write_audioset(folder / "data", train=8, evaluation=2)
    known = sorted(strong_clips(inputs).classes.names)[0]
    recording(folder / "audio/door one.wav", 25.1, 1200)
    recording(folder / "audio/deep/bell.flac", 4, 3000)
    recording(folder / "audio/deep/nothing.wav", 3, 200)
    rows = ["door one.wav\t8.5\t21\tOwn door", "door one.wav\t1\t2\t" + known, "bell.flac\t0\t4\tA bell", "nothing.wav"]
    (folder / "own.tsv").write_text("\n".join(["filename\tonset\toffset\tevent_label", *rows]) + "\n")
    files = {"labels": str(folder / "own.tsv")} | {n: inputs[n] for n in ("train_strong", "mid_to_display_name")}
    out = {"audio": str(folder / "out/audio.h5"), "events": str(folder / "out/events.tsv")}
    store_extra(JOB.model_copy(update={"audio": str(folder / "audio")}), inputs=files, out=out)
    weights = [write_step1(folder)]
    plain = {**inputs, "weights": weights}
    yield {**plain, "stores": [*inputs["stores"], out["audio"]], "extra": [out["events"]]}, plain, known
    torch.set_num_threads(threads)


def test_recordings_become_pieces_of_ten_seconds_with_their_events(own):
    inputs, plain, known = own
    clips, before = strong_clips(inputs), strong_clips(plain)
    assert clips.classes.names == (*before.classes.names, "A bell", "Own door")
    assert clips.classes.mids[-2:] == ("A bell", "Own door")
    truth = clips.ground_truth()
    assert {name: truth[name] for name in before.ids} == before.ground_truth()
    mine = {name.removeprefix("extra/"): events for name, events in truth.items() if name.startswith("extra/")}
    assert mine == {
        "bell.flac/000000": [(0.0, 4.0, "A bell")],
        "door one.wav/000000": [(1.0, 2.0, known), (8.5, 10.0, "Own door")],
        "door one.wav/000001": [(0.0, 10.0, "Own door")],
        "door one.wav/000002": [(0.0, 1.0, "Own door")],
        "nothing.wav/000000": [],
    }
    lengths = dict(zip(clips.ids, clips.durations))
    assert lengths["extra/door one.wav/000002"] == pytest.approx(5.1, abs=0.01)
    loud = clips.waveform(clips.ids.index("extra/door one.wav/000001"))
    assert np.abs(loud).max() == pytest.approx(0.3 * 32768, rel=0.05)


def test_evaluation_clips_stay_audiosets_with_the_same_classes(own):
    inputs, plain, _ = own
    clips, before = strong_clips(inputs, "eval"), strong_clips(plain, "eval")
    assert clips.ids == before.ids and clips.ground_truth() == before.ground_truth()
    assert clips.classes == strong_clips(inputs).classes


@pytest.fixture(scope="module")
def taught(own, tmp_path_factory):
    """Soft labels of a teacher that has not seen the own recordings, with its class list."""
    _, plain, _ = own
    folder = tmp_path_factory.mktemp("taught")
    clips = strong_clips(plain)
    job = train_job(epochs=1, epoch_clips=8)
    train_strong(job, inputs=plain, weights=[str(folder / "model.safetensors")])
    return write_ensemble(folder / "e.h5", [folder], clips, classes=clips.classes, batch_size=4, progress=False)


def test_a_student_learns_own_classes_beside_soft_labels_that_lack_them(own, taught, tmp_path, capfd):
    inputs, _, _ = own
    job = train_job(distillation_weight=0.9, epochs=12, epoch_clips=16, missing_clips="labels", learning_rate=0.03)
    given = {**inputs, "soft_labels": [str(taught)]}
    train_strong(job, inputs=given, weights=[str(tmp_path / "model.safetensors")])
    assert "soft labels for 8 of 13 training clips" in capfd.readouterr().out
    model, spec = checkpoints.load_checkpoint(tmp_path)
    assert spec["classes"][-2:] == ["A bell", "Own door"] and len(spec["classes"]) == 6
    clips = strong_clips(inputs)
    place = clips.ids.index("extra/door one.wav/000001")
    with torch.no_grad():
        frames, _ = model(model.frontend(torch.from_numpy(clips.waveform(place)[None] / np.float32(32768))))
    mean = frames[0].mean(1)
    assert mean.argmax() == 5, mean  # "Own door", which the soft labels lack


def test_soft_labels_act_per_class_and_clip(own, taught):
    inputs, plain, _ = own
    clips, there = strong_clips(inputs), set(strong_clips(plain).ids)
    soft = SoftLabels(taught, clips.classes, missing_clips="labels")
    assert soft.mask.tolist() == [True] * 4 + [False] * 2
    rows = soft.rows(clips.ids)
    known = torch.tensor([name in there for name in clips.ids])
    assert torch.equal(~rows.isnan(), (known[:, None] & soft.mask)[..., None].expand_as(rows))
    logits = torch.zeros_like(rows, requires_grad=True)
    distillation(logits, torch.zeros_like(rows), rows, weight=0.9).backward()
    alone = 0.1 * 0.5 / rows.numel()  # of the labels' term, whose weight is 1 - 0.9
    assert torch.allclose(logits.grad[rows.isnan()], torch.tensor(alone))


def test_the_published_file_without_a_class_list_serves_447_classes(tmp_path):
    published = known_strong()[0]
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["filenames"] = np.array([b"Yabcdefghijk.mp3"])
        file["strong_logits"] = np.arange(447, dtype=np.float16)[None, :, None].repeat(250, 2) / 447
    classes = with_own(published, ["Zither of mine", "Aardvark"], dict(zip(published.mids, published.names)), source="")
    assert classes.names[447:] == ("Aardvark", "Zither of mine")
    soft = SoftLabels(tmp_path / "p.h5", classes, missing_clips="labels")
    rows = soft.rows(["abcdefghijk_30000", "extra/abcdefghijk.mp3/000000"])
    assert rows[0, :447].isfinite().all() and rows[0, 447:].isnan().all() and rows[1].isnan().all()
    assert torch.allclose(rows[0, 446, 0], torch.tensor(446 / 447).sigmoid(), atol=1e-3)
    with pytest.raises(UserError, match="no class list and 447 classes, but 9 are trained"):
        SoftLabels(tmp_path / "p.h5", ClassList.of(map(str, range(9))))


HEAD = "filename\tonset\toffset\tevent_label\n"


@pytest.mark.parametrize(
    ("table", "folder", "words"),
    [
        (HEAD + "a.wav\t0\t1\tOwn\n", "gone", ["audioset.extra.audio", "gone does not exist", "correct the folder"]),
        (HEAD + "a.wav\t0\t1\tOwn\nb.wav\t0\t1\tOwn\n", "audio", ["audioset.extra.audio", "b.wav is not in"]),
        (HEAD + "c.wav\t0\t1\tOwn\n", "audio", ["audioset.extra.audio", "c.wav is in 2 folders below"]),
        (HEAD + "{d}.wav\t0\t1\tOwn\n", "audio", ["audioset.extra.audio", "audio/{d}.wav has a brace", "rename it"]),
        (HEAD + "a.wav\t0\t1\tdog \n", "audio", ["audioset.extra.labels", "'dog' is almost 'Dog'", "write one name"]),
        (HEAD + "a.wav\t0\t1\tOwn\na.wav\t0\t1\town\n", "audio", ["the class 'own' is almost 'Own'"]),
        (HEAD + "a.wav\t0\t1\t/m/0bt9lr\n", "audio", ["/m/0bt9lr is the id of a class; write its name"]),
        (HEAD + "a.wav\t2\t1\tOwn\n", "audio", ["1 of 1 events do not end after they begin"]),
        ("filename\tevent_labels\na.wav\tOwn\n", "audio", ["Step 3 needs events with times"]),
        (None, "audio", ["audioset.extra.labels", "no such table of labels"]),
    ],
)
def test_mistakes_are_found_before_a_run(tmp_path, monkeypatch, capsys, table, folder, words):
    monkeypatch.chdir(tmp_path)
    for name in ("audio/a.wav", "audio/{d}.wav", "audio/x/c.wav", "audio/y/c.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    if table is not None:
        Path("own.tsv").write_text(table)
    Path("mine.yaml").write_text(f"audioset:\n  extra:\n    labels: own.tsv\n    audio: {folder}\n")
    with pytest.raises(UserError) as error:
        checked(["mine.yaml"], targets=["results/table1.csv"])
    assert all(word in str(error.value) for word in words), error.value
    assert "mine.yaml, line " in str(error.value)
    assert main(["doctor", "--configfile", "mine.yaml"]) == 1
    assert words[-1] in capsys.readouterr().out


def test_both_keys_are_needed():
    for block in ({}, {"labels": "own.tsv"}):
        with pytest.raises(UserError, match="expected a table and a folder; write extra:"):
            load({"audioset": {"extra": block}})


def test_every_job_that_reads_training_clips_reads_the_own_ones():
    plan = Plan(load({"audioset": {"extra": {"labels": "own.tsv", "audio": "recordings"}}}))
    train, judged, published = plan.clips("train"), plan.clips("eval"), plan.clips("eval", own=False)
    assert train["stores"][-1] == "data/extra/audio.h5" and train["extra"] == ["data/extra/events.tsv"]
    assert judged["stores"] == published["stores"] and judged["extra"] == train["extra"] and published["extra"] == []
    assert Plan(load({})).clips("train")["extra"] == []
