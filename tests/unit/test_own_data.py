"""One's own labels: docs/own-data.md as it stands, scores against the metrics, stopped trainings, and mistakes."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from downstream_sets import CLASSES, tone_file

from framekd.audio import ffmpeg_path
from framekd.checkpoints import load_checkpoint, save_checkpoint
from framekd.cli import main
from framekd.config import UserError
from framekd.labels.tsv import read_annotations, unknown_classes
from framekd.metrics import median_filter, psds1
from framekd.models import build_model
from framekd.published import open_model
from framekd.recordings import locate
from framekd.scoring import score_files
from framekd.tasks.finetune import Recordings, finetune
from framekd.train import RunOptions, Stopped, torch_generator

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
HEADER = "filename\tonset\toffset\tevent_label\n"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint of a tiny untrained model."""
    model = build_model("tiny", n_classes=4).init_weights(torch_generator(5))
    return save_checkpoint(tmp_path_factory.mktemp("start"), model, classes=list(CLASSES), provenance={})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve recordings of 3 to 14 s, some in folders, and tables of their events and of their clip labels."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    events, clips = HEADER, "filename\tevent_labels\n"
    for k in range(12):
        name = f"{'a/' if k % 3 else ''}clip {k}.wav"
        found = tone_file(root / "audio" / name, draw, seconds=3 + k, events=3)
        events += "".join(f"{name}\t{a}\t{b}\t{CLASSES[c]}\n" for a, b, c in found)
        clips += f"{name}\t{','.join(sorted({CLASSES[c] for *_, c in found}))}\n"
    (root / "events.tsv").write_text(events + "a/clip 1.wav\t\t\t\n", encoding="utf-8")
    (root / "clips.tsv").write_text(clips, encoding="utf-8")
    return root


def recordings(data, table="events.tsv", files=None):
    labels = read_annotations(data / table)
    found = locate(labels, data / "audio")
    found = {name: found[name] for name in files or found}
    return Recordings(labels.select(found), found)


# ------------------------------------------------------------------------------------------------------- tutorial


def test_the_tutorial_runs_and_the_model_has_learnt(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```|^    (framekd .*?)$", PAGE.replace("\\\n", " "), re.M | re.S)
    assert len(blocks) == 7
    for python, command in blocks:
        if python:
            exec(python, {})
            continue
        words = ["0.03" if word == "0.01" else str(start) if word == "BEATs" else word for word in shlex.split(command)]
        assert main(words[1:]) == 0, command
    scores = pd.read_csv("scores/scores.csv").set_index("class")
    assert scores.loc["(all)", "psds1"] > 0.6 and scores.loc["(all)", "segment_f1"] > 0.6
    assert list(scores.index[1:]) == ["Beep", "Hum", "Whistle"] and scores["events"].iloc[1:].sum() == 12
    page = Path("scores/scores.html").read_text(encoding="utf-8")
    assert "Whistle" in page and not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert Path("found/clip_16.wav.events.tsv").is_file() and Path("embeddings/clip_16.wav.times.npy").is_file()
    assert Path("mine/training.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path("mine").iterdir()) == [
        "history.jsonl", "model.safetensors", "spec.json", "training.png"
    ]  # fmt: skip
    lines = [json.loads(line) for line in Path("mine/history.jsonl").read_text().splitlines()]
    assert any("val/psds1" in line for line in lines)
    capsys.readouterr()


# --------------------------------------------------------------------------------------------------------- scores


def test_scores_are_those_of_the_metrics(start, data):
    model, spec = open_model(start)
    given = recordings(data)
    short = [name for name in given.files if soundfile.info(given.files[name]).duration <= 10]
    given = recordings(data, files=short)
    found = score_files(model, spec, given.labels, given.files)
    rows = {}
    for name, path in given.files.items():
        wave = torch.zeros(1, 160_000)
        samples, _ = soundfile.read(path, dtype="float32")
        wave[0, : len(samples)] = torch.from_numpy(samples)
        with torch.no_grad():
            frames = model(model.frontend(wave))[0][0].sigmoid().T.numpy()
        count = -(-len(samples) // 640)
        rows[name] = np.where(np.arange(250)[:, None] < count, 0, -1) + 0 * frames
        rows[name][:count] = median_filter(frames[:count], 0.48)
    seconds = {name: soundfile.info(path).duration for name, path in given.files.items()}
    classes = [name for name in CLASSES if given.labels.counts()[name]]
    columns = [CLASSES.index(name) for name in classes]
    rows = {name: values[:, columns] for name, values in rows.items()}
    expected = psds1(rows, given.labels.events, seconds, classes)
    assert found.overall["psds1"] == pytest.approx(expected.at(0), abs=1e-9)
    assert found.overall["psds1_with_penalty"] == pytest.approx(expected.at(1), abs=1e-9)


def test_scores_of_clip_labels_count_chance(start, data):
    model, spec = open_model(start)
    given = recordings(data, "clips.tsv")
    found = score_files(model, spec, given.labels, given.files)
    assert set(found.overall) == {"map", "map_of_chance"}
    assert found.per_class["clips"].sum() == sum(given.labels.counts().values())


def test_unknown_classes_are_counted_and_names_suggested(start, data, tmp_path, capsys):
    table = tmp_path / "other.tsv"
    table.write_text((data / "events.tsv").read_text().replace("\tDog", "\tdogs").replace("\tCat", "\tXylophone"))
    arguments = ["evaluate", "--model", str(start), "--labels", str(table), "--audio", str(data / "audio")]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    counts = read_annotations(table).counts()
    assert f"dogs ({counts['dogs']}; did you mean 'Dog'?)" in said and f"Xylophone ({counts['Xylophone']})" in said
    assert main([*arguments, "--ignore-unknown", "--out", str(tmp_path / "out")]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "scores.csv")["class"]) == {"(all)", "Blender", "Dishes"}
    assert unknown_classes({"Dog": 3}, CLASSES) is None


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(("table", "frozen"), [("events.tsv", False), ("clips.tsv", False), ("clips.tsv", True)])
def test_a_stopped_training_ends_in_the_same_weights(start, data, tmp_path, table, frozen):
    model, spec = open_model(start)
    names = list(recordings(data).files)
    train, valid = recordings(data, table, names[:8]), recordings(data, table, names[8:])
    changes = dict(epochs=2, batch_size=4, learning_rate=0.01)

    def run(out, **how):
        options = RunOptions(device=CPU, progress=False, **how)
        about = dict(valid=valid, frozen=frozen, changes=changes, device=CPU, options=options)
        return finetune(model, spec, train, tmp_path / out, **about)

    run("whole")
    with pytest.raises(Stopped):
        run("stopped", time_limit=0.0)
    assert not (tmp_path / "stopped" / "spec.json").exists()
    result = run("stopped")
    assert any("val/loss" in line for line in result.history)
    trained, about = load_checkpoint(tmp_path / "stopped")
    for name, value in load_checkpoint(tmp_path / "whole")[0].state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name
    before = model.encoder.state_dict()
    same = all(torch.equal(value, before[name]) for name, value in trained.encoder.state_dict().items())
    assert same == frozen
    assert trained.head == ("linear" if table == "events.tsv" else "attention")
    assert about["provenance"]["labels"]["clips"] == 8
    assert about["provenance"]["start"] == {"model": "tiny", "weights_sha256": spec["weights_sha256"]}


def test_frozen_heads_are_validated_as_the_saved_model_scores(start, data, tmp_path):
    """The losses of cached features and of the whole model agree to the rounding of float16 features."""
    from framekd.data import windows
    from framekd.tasks.finetune import read_pool, validate
    from framekd.train import Objective

    model, spec = open_model(start)
    given = recordings(data)
    result = finetune(
        model, spec, given, tmp_path / "out", valid=given, frozen=True, changes={"epochs": 2}, device=CPU,
        options=RunOptions(device=CPU, progress=False),
    )  # fmt: skip
    trained, about = load_checkpoint(tmp_path / "out")
    from framekd.labels import ClassList

    pool = read_pool(given, ClassList.of(about["classes"]), tmp_path / "audio.h5")
    found = validate(trained, pool, windows(pool.clips, 8), Objective("strong"), device=CPU)
    kept = next(line for line in result.history if line["step"] == result.kept_step and "val/loss" in line)
    assert found["val/loss"] == pytest.approx(kept["val/loss"], rel=2e-3)
    assert found["val/psds1"] == pytest.approx(kept["val/psds1"], abs=0.05)


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the table is empty"),
        (HEADER.encode(), "the table is empty"),
        (b"filename\tonset\tlabel\na.wav\t1\tDog\n", "expected the columns filename, onset, offset, event_label"),
        ((HEADER + "a.wav\tnan\t1\tDog\na.wav\t0\tx\tDog\na.wav\t0\t1\tDog\n").encode(), "2 of 3 events have an onset"),
        ((HEADER + "a.wav\t2\t1\tDog\na.wav\t0\t1\tDog\n").encode(), "1 of 2 events do not end after they begin"),
        ((HEADER + "a.wav\t-1\t1\tDog\n").encode(), "1 of 1 events begin before 0 s"),
        ((HEADER + "\t0\t1\tDog\n").encode(), "1 of 1 rows have no filename"),
        ((HEADER + "a.wav\t0\t1\t\n").encode(), "1 of 1 rows have times but no event_label"),
        ((HEADER + "a.wav\t\t\t\n").encode(), "none of its 1 rows has a label"),
        ((HEADER + "a.wav\t0\t1\tHündchen\n").encode("latin-1"), "line 2 is not UTF-8"),
        ((HEADER + "a.wav\t0\t1\tDog\n").encode("utf-16"), "line 1 is not UTF-8"),
    ],
)  # fmt: skip
def test_wrong_tables_are_one_sentence(tmp_path, content, sentence):
    (tmp_path / "labels.tsv").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_annotations(tmp_path / "labels.tsv")


def test_tables_with_commas_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('﻿filename,event_labels\r\n"a.wav","Dog, Cat,Dog"\r\nb.wav,\r\n', encoding="utf-8")
    found = read_annotations(path)
    assert found.clip_labels == {"a.wav": ["Dog", "Cat"], "b.wav": []} and not found.timed


def test_audiosets_names_with_commas_are_one_clip_label(tmp_path):
    path = tmp_path / "clips.tsv"
    cells = ("Speech,Baby cry, infant cry,Dog", "Baby cry,infant cry", "Inside, large room or hall, Inside, small room")
    path.write_text("filename\tevent_labels\n" + "".join(f"{i}.wav\t{cell}\n" for i, cell in enumerate(cells)))
    assert list(read_annotations(path).clip_labels.values()) == [
        ["Speech", "Baby cry, infant cry", "Dog"],
        ["Baby cry", "infant cry"],
        ["Inside, large room or hall", "Inside, small room"],
    ]


def test_files_and_labels_that_do_not_belong_together(start, data, tmp_path, capsys):
    out = tmp_path / "mine"

    def finetuned(text, *more, name="labels.tsv"):
        (tmp_path / name).write_text(HEADER + text)
        words = [
            "finetune",
            "--model",
            str(start),
            "--audio",
            str(data / "audio"),
            "--out",
            str(out),
            "--device",
            "cpu",
        ]
        code = main([*words, "--train", str(tmp_path / name), *more])
        said = capsys.readouterr().err
        assert code == 1 and said.count("Traceback") == 0 and not (out / "spec.json").exists()
        return said

    assert "1 of 2 files are not in" in finetuned("clip 0.wav\t0\t1\tDog\nno.wav\t0\t1\tDog\n")
    assert "1 of 1 files are not in" in finetuned("no.wav\t0\t1\tDog\n", "--ignore-missing")
    said = finetuned("clip 0.wav\t0\t1\tDog\nclip 0.wav\t50\t51\tDog\n")
    assert "1 of 2 events begin after the end of their clip (clip 0.wav: 50 s of 3.00 s)" in said
    assert "11 of 12 audio files" in said
    (tmp_path / "valid.tsv").write_text(HEADER + "clip 3.wav\t0\t1\tDogs\n")
    said = finetuned("clip 0.wav\t0\t1\tDog\n", "--valid", str(tmp_path / "valid.tsv"))
    assert "1 classes have no training example: Dogs (1; did you mean 'Dog'?)" in said
    said = finetuned("clip 0.wav\t0\t1\tDog\n", "--valid", str(data / "clips.tsv"))
    assert "has events and" in said and "give two tables of one kind" in said
    assert "--device nonsense" in finetuned("clip 0.wav\t0\t1\tDog\n", "--device", "nonsense")
    assert "--epochs: expected a whole number" in finetuned("clip 0.wav\t0\t1\tDog\n", "--epochs", "0")
    assert not out.exists()
    out.write_text("a file")
    assert "there is a checkpoint or a file already" in finetuned("clip 0.wav\t0\t1\tDog\n")


def test_a_file_called_wav_that_is_another_is_decoded_or_one_sentence(start, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 32_000), 16_000)
    command = [ffmpeg_path(), "-loglevel", "error", "-i", tmp_path / "a.wav", "-f", "mp4", tmp_path / "film.wav"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (tmp_path / "text.wav").write_text("hello " * 100)
    for name, code in (("film.wav", 0), ("text.wav", 1)):
        (tmp_path / "train.tsv").write_text(HEADER + f"{name}\t0\t1\tDog\n")
        words = ["--train", str(tmp_path / "train.tsv"), "--audio", str(tmp_path), "--out", str(tmp_path / name[:4])]
        assert main(["finetune", "--model", str(start), *words, "--frozen", "--epochs", "1"]) == code
    said = capsys.readouterr().err.splitlines()
    assert "text.wav: no audio that can be decoded" in said[-1] and not (tmp_path / "text").exists()


def test_a_class_without_validation_example_is_a_note(start, data, tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(HEADER + "clip 0.wav\t0\t1\tDog\nclip 3.wav\t0\t9\tCat\n")
    (tmp_path / "valid.tsv").write_text(HEADER + "clip 6.wav\t0\t1\tDog\n")
    words = ["finetune", "--model", str(start), "--audio", str(data / "audio"), "--out", str(tmp_path / "mine")]
    tables = ["--train", str(tmp_path / "train.tsv"), "--valid", str(tmp_path / "valid.tsv")]
    assert main([*words, *tables, "--epochs", "1", "--frozen"]) == 0
    said = capsys.readouterr().err
    assert "1 of 2 classes have no example and are not judged: Cat" in said
    assert "1 of 2 events last beyond the end of their clip and are cut (clip 3.wav)" in said


def test_durations_may_come_from_a_table(start, data, tmp_path, capsys):
    words = ["evaluate", "--model", str(start), "--labels", str(data / "events.tsv"), "--audio", str(data / "audio")]
    files = read_annotations(data / "events.tsv").files
    table = tmp_path / "durations.tsv"
    table.write_text("filename\tduration\n" + "".join(f"{name}\t14\n" for name in files[1:]))
    assert main([*words, "--durations", str(table)]) == 1
    assert "1 of 12 files have no duration (clip 0.wav)" in capsys.readouterr().err
