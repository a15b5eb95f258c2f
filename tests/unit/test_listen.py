"""Live input: the scores of frames once enough has come, and events from a real pipe soon after their end."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
from loudness import bursts, loudness_checkpoint

from framekd.listen import AHEAD, listen, live_scores
from framekd.published import open_model
from framekd.windows import windowed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return loudness_checkpoint(tmp_path_factory.mktemp("loud"))


@pytest.mark.parametrize("size", [700, 8000, 200_000])
def test_live_scores_are_those_of_the_file_whatever_comes_at_once(folder, tmp_path, size):
    model, _ = open_model(folder)
    wave, _ = soundfile.read(bursts(tmp_path / "a.wav", [(1, 2), (9, 12), (13, 13.5)], 14.03), dtype="float32")
    wave = wave[: 4 * 16_000 if size == 700 else None]
    got = np.concatenate(list(live_scores(model, np.split(wave, range(size, len(wave), size)), keep=[0])))
    whole = windowed(model, torch.from_numpy(wave)).sigmoid().T.numpy()[:, :1]
    assert got.shape == whole.shape
    assert ((got > 0.5) == (whole > 0.5)).mean() > 0.99


def test_a_frame_is_given_once_enough_has_come_after_it(folder):
    model, _ = open_model(folder)
    parts = [np.zeros(6400, np.float32)] * 4
    assert [len(block) for block in live_scores(model, parts)] == [10 - AHEAD, 10, 10, 10, AHEAD]


def test_an_event_ends_with_the_stream(folder):
    model, spec = open_model(folder)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    (event,) = listen(model, [np.zeros(16_000, np.float32), noise], spec["classes"], keep=[0])
    assert event == {"onset": 1.0, "offset": 2.0, "event_label": "burst", "score": pytest.approx(1, abs=0.01)}


@pytest.mark.parametrize("options", [[], ["--rate", "48000", "--channels", "2"]])
def test_a_pipe_needs_no_more_than_a_second_of_audio_after_an_event(folder, tmp_path, options):
    """The pipe stays open: what is printed does not wait for more. The audio, not the clock, is what is counted."""
    rate = 48_000 if options else 16_000
    wave, _ = soundfile.read(bursts(tmp_path / "a.wav", [(0.5, 1.5)], 2.5, rate=rate), dtype="int16")
    command = [sys.executable, "-m", "framekd.cli", "listen", "--model", str(folder), "--classes", "burst", *options]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        timer = threading.Timer(400, process.kill)
        timer.start()
        assert process.stderr.readline() == b"framekd: listening\n"
        process.stdin.write((np.repeat(wave[:, None], 2, axis=1) if options else wave).tobytes())
        process.stdin.flush()
        event = json.loads(process.stdout.readline())
        assert process.poll() is None
        process.stdin.close()
        assert process.stdout.read() == b"" and process.wait() == 0
        timer.cancel()
    assert event["event_label"] == "burst" and abs(event["onset"] - 0.5) < 0.1 and abs(event["offset"] - 1.5) < 0.15
