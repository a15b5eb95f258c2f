"""The miniatures of DESED, DCASE 2016 Task 2 and MAESTRO: layouts, formats, events where they sound."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from framekd.miniature import build_dcase16, build_desed, build_maestro
from framekd.miniature.downstream import DCASE16_CLASSES, DESED_CLASSES, tone, write_music
from framekd.miniature.scenes import envelope
from framekd.tasks.desed import read_strong
from framekd.units import SAMPLE_RATE

RECORDINGS = Path(__file__).parents[2] / "miniature"


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def desed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("desed")
    return directory, build_desed(
        directory, seed=2, n_weak=12, n_synthetic=14, n_judging=11, n_validation=12, recordings_dir=RECORDINGS
    )


def test_desed_has_its_layout_and_columns(desed):
    directory, summary = desed
    weak = table(directory / "metadata/train/weak.tsv")
    synthetic = table(directory / "metadata/train/synthetic21_train/soundscapes.tsv")
    validation = table(directory / "metadata/validation/validation.tsv")
    judging = table(directory / "metadata/validation/synthetic21_validation/soundscapes.tsv")
    durations = table(directory / "metadata/validation/validation_durations.tsv")
    assert list(weak[0]) == ["filename", "event_labels"] and list(durations[0]) == ["filename", "duration"]
    columns = ["filename", "onset", "offset", "event_label"]
    assert list(synthetic[0]) == list(judging[0]) == list(validation[0]) == columns
    assert (len(weak), len({r["filename"] for r in synthetic}), len(durations)) == (12, 14, 12)
    assert {c for row in weak for c in row["event_labels"].split(",")} <= set(DESED_CLASSES)
    assert len({r["filename"] for r in judging}) == 11
    for rows in (synthetic, judging, validation):
        assert {row["event_label"] for row in rows} == set(DESED_CLASSES)
        assert all(0 <= float(row["onset"]) < float(row["offset"]) <= 10 for row in rows)
    assert all(float(row["duration"]) == 10 for row in durations)
    assert summary["clips"] == {"weak": 12, "synthetic": 14, "judging": 11, "validation": 12}


def test_desed_audio_is_10_s_at_16_khz(desed):
    files = sorted((desed[0] / "audio").rglob("*.wav"))
    assert len(files) == 49
    for path in files:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 160_000)


def test_the_task_reads_the_miniature(desed):
    assert set(read_strong(desed[0] / "metadata/validation/validation.tsv")) == {
        path.name for path in (desed[0] / "audio/validation/validation").iterdir()
    }


@pytest.fixture(scope="module")
def dcase(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dcase")
    return directory, build_dcase16(directory, seed=2, n_files=3, recordings_dir=RECORDINGS)


def vocabulary(directory):
    with (directory / "labelvocabulary.csv").open(newline="") as file:
        return [(int(row["idx"]), row["label"]) for row in csv.DictReader(file)]


def test_dcase16_is_as_hear_prepares_it(dcase):
    directory, summary = dcase
    assert vocabulary(directory) == list(enumerate(sorted(DCASE16_CLASSES))) and len(DCASE16_CLASSES) == 11
    assert summary["files"] == {"train": 1, "valid": 1, "test": 1}
    for split in ("train", "valid", "test"):
        content = json.loads((directory / f"{split}.json").read_text())
        for name, events in content.items():
            info = soundfile.info(directory / "48000" / split / name)
            assert (info.samplerate, info.frames) == (48_000, 120 * 48_000)
            assert {event["label"] for event in events} == set(DCASE16_CLASSES)
            assert all(0 <= event["start"] < event["end"] <= 120_000 for event in events)
            assert events == sorted(events, key=lambda event: (event["start"], event["label"]))


@pytest.fixture(scope="module")
def maestro(tmp_path_factory):
    directory = tmp_path_factory.mktemp("maestro")
    return directory, build_maestro(directory, seed=2, n_files=3, n_folds=3, low=60, high=67, recordings_dir=RECORDINGS)


def test_maestro_has_folds_and_88_classes(maestro):
    directory, summary = maestro
    assert vocabulary(directory) == [(k, str(21 + k)) for k in range(88)]
    assert summary["files"] == {"fold00": 1, "fold01": 1, "fold02": 1}
    for fold in ("fold00", "fold01", "fold02"):
        [(name, events)] = json.loads((directory / f"{fold}.json").read_text()).items()
        assert {int(event["label"]) for event in events} <= set(range(60, 68)) and len(events) > 100
        assert soundfile.info(directory / "48000" / fold / name).frames == 120 * 48_000


def test_maestro_notes_begin_where_the_sound_does(maestro):
    """At notes after a rest the level jumps within 20 ms of the label."""
    directory, _ = maestro
    [(name, events)] = json.loads((directory / "fold00.json").read_text()).items()
    samples, rate = soundfile.read(directory / "48000/fold00" / name, dtype="float32")
    level = envelope(samples[:: rate // SAMPLE_RATE])
    checked, end = 0, 0.0
    for event in events:
        start = event["start"] / 1000
        if start > end + 0.15:
            before = level[round((start - 0.08) * 200) : round((start - 0.02) * 200)].max()
            assert level[round((start - 0.01) * 200) : round((start + 0.02) * 200)].max() > 3 * before
            checked += 1
        end = max(end, event["end"] / 1000)
    assert checked >= 3


@pytest.mark.parametrize("pitch", [45, 60, 69, 81])
def test_a_tone_has_its_pitch_and_dies_away(pitch):
    sound = tone(pitch, brightness=1.2, stretch=3e-4, ring=1.0, rng=np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(sound[1600:17_600], 160_000))
    f0 = 440 * 2 ** ((pitch - 69) / 12)
    near = slice(round(f0 * 10 * 0.97), round(f0 * 10 * 1.03))
    found = (np.argmax(spectrum[near]) + near.start) / 10
    assert found == pytest.approx(f0, rel=0.004) and spectrum[near].max() > 0.5 * spectrum.max()
    level = envelope(sound)
    assert level[10:30].mean() > 2 * level[-40:].mean()


def test_no_key_is_struck_while_it_sounds():
    notes = write_music(np.random.default_rng(0), low=55, high=70, rate=4.0)
    last = {}
    for pitch, onset, offset in notes:
        assert onset >= last.get(pitch, 0) and 0 < offset - onset <= 2.5 and offset <= 119.9
        last[pitch] = offset
    assert 200 < len(notes) < 1500


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3 are needed"):
        build_dcase16(tmp_path, seed=0, n_files=2, recordings_dir=RECORDINGS)
    with pytest.raises(ValueError, match="cannot make 2 pieces in 3 folds"):
        build_maestro(tmp_path, seed=0, n_files=2, n_folds=3, recordings_dir=RECORDINGS)


def test_downstream_sets_are_a_function_of_their_seed(tmp_path):
    sizes = dict(n_weak=10, n_synthetic=10, n_judging=10, n_validation=10, recordings_dir=RECORDINGS)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_desed(tmp_path / name, seed=seed, **sizes)
    contents = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted((tmp_path / name).rglob("*")) if p.is_file()}
        for name in "abc"
    ]
    assert contents[0] == contents[1] != contents[2]
