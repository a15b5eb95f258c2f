"""`framekd predict` and `thresholds` as a user has them: real files of every kind in, results or one sentence out."""

import fcntl
import io
import json
import os
import pty
import resource
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from loudness import CLASSES, bursts, loudness_checkpoint

from framekd.audio import ffmpeg_path
from framekd.cli import main

SPEECH = "Male speech, man speaking"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return loudness_checkpoint(tmp_path_factory.mktemp("loud"))


@pytest.fixture
def run(model, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        command, *rest = arguments
        code = main([str(command), "--model", str(model), *map(str, rest)])
        return code, capsys.readouterr().err

    return run


def spans(path: Path, label: str = "burst") -> list[tuple[float, float]]:
    table = pd.read_csv(path, sep="\t")
    return [(e.onset, e.offset) for e in table.itertuples() if e.event_label == label]


def convert(source: Path, target: Path, *arguments: str) -> Path:
    command = [ffmpeg_path(), "-loglevel", "error", "-y", "-i", source, *arguments, target]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return target


def test_every_format_says_the_same(run):
    bursts(Path("a.wav"), [(1, 2), (5, 8)], 12.5)
    code, said = run("predict", "a.wav", "--out", "out", "--format", "tsv,json,jsonl,audacity,rttm,csv", "--scores",
                     "--top", 2)  # fmt: skip
    assert code == 0 and said == "a.wav: 4 events in 12.5 s\n"
    table = pd.read_csv("out/a.wav.events.tsv", sep="\t")
    assert list(table.columns) == ["onset", "offset", "event_label", "score"]
    assert spans(Path("out/a.wav.events.tsv")) == [(1.0, 2.08), (5.0, 8.08)]
    listed = json.loads(Path("out/a.wav.events.json").read_text())
    assert listed == [json.loads(line) for line in Path("out/a.wav.events.jsonl").read_text().splitlines()]
    assert [e["event_label"] for e in listed] == table.event_label.tolist() == [SPEECH, "burst"] * 2
    assert [e["onset"] for e in listed] == pytest.approx(table.onset.tolist(), abs=0.001)
    marks = [line.split("\t") for line in Path("out/a.wav.labels.txt").read_text().splitlines()]
    assert [(float(a), float(b), c) for a, b, c in marks] == list(
        table[["onset", "offset", "event_label"]].itertuples(index=False, name=None)
    )
    first = Path("out/a.wav.rttm").read_text().splitlines()[0].split(" ")
    assert len(first) == 10 and first[:3] == ["SPEAKER", "a.wav", "1"] and first[7] == SPEECH.replace(" ", "_")
    assert float(first[3]) == table.onset[0] and float(first[4]) == pytest.approx(table.offset[0] - table.onset[0])
    arrays = np.load("out/a.wav.scores.npz")
    assert arrays["scores"].shape == (313, 3) and arrays["scores"].dtype == np.float32
    assert tuple(arrays["classes"]) == CLASSES and arrays["times"][[0, 1, -1]] == pytest.approx([0, 0.04, 12.48])
    assert arrays["scores"][30, 0] > 0.99 > 0.01 > arrays["scores"][80, 0]
    scores = pd.read_csv("out/a.wav.scores.csv")
    assert list(scores.columns) == ["time", *CLASSES]
    assert np.abs(scores[list(CLASSES)].to_numpy() - arrays["scores"]).max() < 1e-4
    top = pd.read_csv("out/a.wav.top.tsv", sep="\t")
    assert top.event_label.tolist() == ["burst", SPEECH] and 1 <= top.onset[0] < 8


def test_folders_patterns_and_names_that_occur_twice(run):
    for name in ("x/a.wav", "x/deep/b.wav", "y/a.wav", "y/.hidden.wav", "y/notes.txt"):
        bursts(Path(name).with_suffix(".wav"), [(0.2, 0.8)], 1).rename(name)
    assert run("predict", "x", "--out", "tree")[0] == 0
    assert sorted(p.relative_to("tree").as_posix() for p in Path("tree").rglob("*.tsv")) == [
        "a.wav.events.tsv", "deep/b.wav.events.tsv"]  # fmt: skip
    assert run("predict", "x", "y", "x/a.wav", "--out", "both")[0] == 0
    assert sorted(p.relative_to("both").as_posix() for p in Path("both").rglob("*.tsv")) == [
        "x/a.wav.events.tsv", "x/deep/b.wav.events.tsv", "y/a.wav.events.tsv"]  # fmt: skip
    assert run("predict", "x/**/*.wav", "--out", "pattern")[0] == 0
    assert Path("pattern/deep/b.wav.events.tsv").is_file()
    assert run("predict", "y/a.wav") == (0, "y/a.wav: 2 events in 1.0 s\n") and Path("y/a.wav.events.tsv").is_file()
    Path("empty").mkdir()
    code, said = run("predict", "empty", "no*.wav", "none.wav", "x/a.wav", "--out", "rest")
    assert code == 1 and Path("rest/a.wav.events.tsv").is_file()
    assert said.splitlines()[:3] == [
        "framekd: empty: there is no audio in this folder", "framekd: no*.wav: no such file",
        "framekd: none.wav: no such file"]  # fmt: skip


def test_odd_names(run):
    names = ["-rf.wav", "two words.wav", "Ümläüt é.wav", "line\nbreak.wav", "[1]*%d.wav"]
    for name in names:
        bursts(Path("plain.wav"), [(0.2, 0.8)], 1).rename(name)
    code, said = run("predict", "--out", "out", "--html", "--plot", "--", *names)
    assert code == 0 and said.count("\n") == len(names) and "'line\\nbreak.wav'" in said
    for name in names:
        for suffix in (".events.tsv", ".png", ".html"):
            assert (Path("out") / (name + suffix)).stat().st_size > 50


def test_standard_input(run, monkeypatch):
    bursts(Path("a.flac"), [(1, 2)], 4)

    class Stdin:
        buffer = io.BytesIO(Path("a.flac").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert run("predict", "-", "--out", "out") == (0, "-: 2 events in 4.0 s\n")
    assert spans(Path("out/stdin.events.tsv")) == [(1.0, 2.08)]
    Stdin.buffer = io.BytesIO(b"no audio")
    code, said = run("predict", "-", "--out", "out")
    assert code == 1 and said.startswith("framekd: -: no audio that can be decoded") and said.count("\n") == 1


def test_odd_audio_gives_right_results(run):
    burst = bursts(Path("a.wav"), [(1, 2)], 4)
    wide, _ = soundfile.read(burst)
    soundfile.write("eight.wav", np.repeat(wide[:, None], 8, 1), 16_000)
    convert(burst, Path("fast.flac"), "-ar", "192000")
    convert(burst, Path("film.mp4"), "-f", "lavfi", "-i", "color=black:d=4:s=32x32:r=5", "-c:a", "aac")
    convert(burst, Path("called.txt"), "-f", "mp3")
    names = ("eight.wav", "fast.flac", "film.mp4", "called.txt")
    assert run("predict", *names)[0] == 0
    for name in names:
        ((onset, offset),) = spans(Path(f"{name}.events.tsv"))
        assert onset == pytest.approx(1, abs=0.09) and offset == pytest.approx(2.08, abs=0.09), name


def test_short_and_silent_audio_has_no_events_and_a_hint(run):
    for name, samples in (("silent", 160_000), ("tenth", 1600), ("one", 1)):
        soundfile.write(f"{name}.wav", np.zeros(samples), 16_000)
    code, said = run("predict", "silent.wav", "tenth.wav", "one.wav", "--plot", "--html", "--scores")
    assert code == 0
    silent, tenth, one = said.splitlines()
    assert silent.startswith("silent.wav: 0 events in 10.0 s (none above 0.5; the highest scores: Male speech")
    assert "0 events in 0.1 s" in tenth and one.startswith("one.wav: 0 events in 0.0 s")
    assert np.load("tenth.wav.scores.npz")["scores"].shape == (3, 3)
    assert np.load("one.wav.scores.npz")["scores"].shape == (1, 3)


def test_files_without_audio_are_one_sentence_each_and_do_not_stop_the_others(run):
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    Path("zero.mp3").touch()
    Path("text.wav").write_text("hello " * 100)
    convert(bursts(Path("a.wav"), [(1, 2)], 4), Path("cut.m4a"))
    Path("cut.m4a").write_bytes(Path("cut.m4a").read_bytes()[:3000])
    code, said = run("predict", "empty.wav", "zero.mp3", "text.wav", "cut.m4a", "a.wav", "--scores", "--plot", "--html")
    lines = said.splitlines()
    assert code == 1 and len(lines) == 5 and "Traceback" not in said
    assert lines[0] == "framekd: empty.wav: it holds no audio samples"
    for line, name in zip(lines[1:4], ("zero.mp3", "text.wav", "cut.m4a")):
        assert line.startswith(f"framekd: {name}: no audio that can be decoded")
    assert lines[4] == "a.wav: 2 events in 4.0 s"
    made = {p.name for p in Path().iterdir() if p.name.startswith(("empty", "zero", "text", "cut", "."))}
    assert made == {"empty.wav", "zero.mp3", "text.wav", "cut.m4a"}


def test_a_file_that_is_cut_off_gives_what_there_is_and_a_warning(run):
    bursts(Path("a.flac"), [(1, 2), (6, 7)], 8)
    whole = Path("a.flac").read_bytes()
    Path("a.flac").write_bytes(whole[: len(whole) * 3 // 5])
    code, said = run("predict", "a.flac")
    assert code == 0 and "warning: a.flac is cut off or damaged: its header says 8.0 s, but 6." in said
    assert spans(Path("a.flac.events.tsv"))[0] == (1.0, 2.08)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--median", "-1"], "--median: expected 0 (no filter) to 10 seconds, not -1"),
        (["--median", "nan"], "not nan"),
        (["--median", "1e9"], "not 1e+09"),
        (["--threshold", "7"], "between 0 and 1, not 7"),
        (["--threshold", "nan"], "not nan"),
        (["--threshold", "none.tsv"], "none.tsv: neither a number nor a file"),
        (["--out", "a.wav"], "--out a.wav: it is a file; give a folder"),
        (["--format", "xml"], "'xml'"),
        (["--top", "-2"], "--top"),
        (["--classes", "bursts"], "no class 'bursts'; did you mean burst?"),
        (["--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_a_mistake_is_one_sentence(run, options, words):
    bursts(Path("a.wav"), [], 1)
    code, said = run("predict", "a.wav", *options)
    assert code == 1 and words in said and said.count("\n") == 1
    assert [p.name for p in Path().iterdir()] == ["a.wav"]


def test_chosen_classes_and_branches(run):
    bursts(Path("a.wav"), [(1, 2)], 4)

    def found(*options: str) -> set[str]:
        assert run("predict", "a.wav", *options)[0] == 0
        return set(pd.read_csv("a.wav.events.tsv", sep="\t").event_label)

    assert found("--classes", "BURST") == {"burst"}
    assert (
        found("--classes", f"{SPEECH},burst") == found("--classes", SPEECH, "--classes", "burst") == {SPEECH, "burst"}
    )
    nodes = [
        {"id": "/m/0dgw9r", "name": "Human sounds", "child_ids": ["/m/09x0r"]},
        {"id": "/m/09x0r", "name": "Speech", "child_ids": ["/m/05zppz"]},
        {"id": "/m/05zppz", "name": SPEECH, "child_ids": []},
    ]
    Path("ontology.json").write_text(json.dumps(nodes))
    assert found("--classes", "Human sounds", "--ontology", "ontology.json") == {SPEECH}
    code, said = run("predict", "a.wav", "--classes", "Human sounds")
    assert code == 1 and "need --ontology" in said


def test_a_full_disk_is_one_sentence_and_leaves_no_half_written_file(run):
    bursts(Path("a.wav"), [(t, t + 0.6) for t in range(1, 60, 2)], 62)
    Path("a.wav.events.json").write_text("as it was")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for options, file in (("--format=json", "events.json"), ("--scores", ""), ("--format=csv", "scores.csv")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            code, said = run("predict", "a.wav", options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert code == 1 and said.count("\n") == 1, said
        assert (f"a.wav.{file}: the disk is full" if file else "a.wav: ") in said
        assert Path("a.wav.events.json").read_text() == "as it was"
        assert sorted(p.name for p in Path().iterdir()) == ["a.wav", "a.wav.events.json"]


def test_no_room_for_standard_input_is_one_sentence(run, monkeypatch, tmp_path):
    class Stdin:
        buffer = io.BytesIO(bytes(100_000))

    monkeypatch.setattr(sys, "stdin", Stdin)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, said = run("predict", "-", "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and "no room for a copy of standard input" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_terminal_sees_a_bar_with_the_time_left(model, tmp_path):
    bursts(tmp_path / "a.wav", [(1, 2)], 30)
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "framekd.cli", "predict", str(tmp_path / "a.wav"), "--model", str(model)]
    process = subprocess.Popen(command, stderr=inner, stdout=inner, stdin=subprocess.DEVNULL)
    os.close(inner)
    seen = b""
    try:
        while data := os.read(outer, 4096):
            seen += data
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert b"left" in seen and b"a.wav" in seen and b"2 events in 30.0 s" in seen


def test_weights_without_frame_head_are_refused_or_doubted(tmp_path, capsys):
    from framekd.labels import known_weak

    bursts(tmp_path / "a.wav", [(1, 2)], 4)
    start = loudness_checkpoint(tmp_path / "start", ["none"])
    assert main(["predict", str(tmp_path / "a.wav"), "--model", str(start)]) == 1
    assert "detects nothing, because only its encoder is trained" in capsys.readouterr().err
    weak = loudness_checkpoint(tmp_path / "weak", known_weak().names)
    assert main(["predict", str(tmp_path / "a.wav"), "--model", str(weak)]) == 0
    assert "its frame scores are a guess" in capsys.readouterr().err


def test_thresholds_are_found_on_labelled_clips_and_used(run):
    rows = []
    for n in range(3):
        bursts(Path(f"clips/{n}.wav"), [(1 + n, 3 + n)], 10)
        rows += [(f"{n}.wav", 1 + n, 3 + n, SPEECH), (f"{n}.wav", 1 + n, 3 + n, "burst")]
    rows += [("silent.wav", None, None, None), ("lost.wav", 0, 1, "burst"), ("0.wav", 0, 1, "unknown")]
    soundfile.write("clips/silent.wav", np.zeros(32_000), 16_000)
    pd.DataFrame(rows, columns=["filename", "onset", "offset", "event_label"]).to_csv("e.tsv", sep="\t", index=False)
    for metric in ("segment", "event"):
        code, said = run("thresholds", "--labels", "e.tsv", "--audio", "clips", "--out", "t.tsv", "--metric", metric)
        assert code == 0 and "1 of 5 files are not in clips and" in said and "1 of 3 labelled classes" in said
        table = pd.read_csv("t.tsv", sep="\t").set_index("class")
        assert table.events.to_dict() == {"burst": 3, SPEECH: 3}
        assert (table.f1 > 0.75).all() and 0.4 < table.threshold[SPEECH] < 0.6
    table.loc[SPEECH, "threshold"] = 0.7
    table.to_csv("mine.tsv", sep="\t")
    assert run("predict", "clips/0.wav", "--threshold", "mine.tsv")[0] == 0
    assert set(pd.read_csv("clips/0.wav.events.tsv", sep="\t").event_label) == {"burst"}
    Path("bad.tsv").write_text("filename\tonset\toffset\tevent_label\n0.wav\t1\t2\tburst\n0.wav\t1\t2\t\n")
    code, said = run("thresholds", "--labels", "bad.tsv", "--audio", "clips", "--out", "none.tsv")
    assert code == 1 and "1 of 2 rows have times but no event_label" in said and not Path("none.tsv").exists()
    Path("bad.tsv").write_text("burst\thalf\n")
    code, said = run("predict", "clips/0.wav", "--threshold", "bad.tsv")
    assert code == 1 and "bad.tsv, line 1: expected a class, a tab and a threshold" in said
    Path("bad.tsv").write_text("cat\t0.5\n")
    code, said = run("predict", "clips/0.wav", "--threshold", "bad.tsv")
    assert code == 1 and "threshold for 'cat', but the model has no such class" in said
