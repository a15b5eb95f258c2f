"""Decoding: exact in time in every container and rate, clean in frequency, and calm about odd files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from framekd.audio import (
    DecodeError,
    declared_seconds,
    decode,
    decode_float,
    decode_stream,
    ffmpeg_path,
    problems,
    to_int16,
)

CODECS = {
    "wav": [],
    "flac": [],
    "mp3": ["-c:a", "libmp3lame", "-b:a", "128k"],
    "ogg": ["-c:a", "libvorbis", "-q:a", "4"],
    "opus": ["-c:a", "libopus", "-b:a", "96k"],
    "webm": ["-c:a", "libopus", "-b:a", "96k", "-ar", "48000"],
    "m4a": ["-c:a", "aac", "-b:a", "128k"],
    "mkv": ["-c:a", "pcm_s16le"],
}
RATES = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000, 192000)
OPUS, MP3 = {8000, 16000, 48000}, {8000, 11025, 16000, 22050, 32000, 44100, 48000}


def convert(source: Path, target: Path, *arguments: str) -> Path:
    subprocess.run(
        [ffmpeg_path(), "-loglevel", "error", "-y", "-i", source, *arguments, target],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return target


def click_track(path: Path, rate: int, *, seconds: int = 14, channels: int = 1) -> Path:
    """A click of 3 ms at every full second."""
    wave = np.zeros((rate * seconds, channels), np.float32)
    n = int(0.003 * rate)
    for k in range(1, seconds):
        wave[k * rate : k * rate + n] = 0.7 * np.sin(2 * np.pi * 1500 * np.arange(n) / rate)[:, None]
    soundfile.write(path, wave, rate)
    return path


def worst_click(samples: np.ndarray, start: float) -> float:
    """Largest distance (seconds) of a click's strongest sample from the middle of where it belongs."""
    x = np.abs(samples.astype(float))
    out = []
    for k in range(int(np.ceil(start)), int(start + len(x) / 16000)):
        centre = int((k - start + 0.0015) * 16000)
        near = x[max(0, centre - 3200) : centre + 3200]
        out.append(abs(int(near.argmax()) - min(centre, 3200)) / 16000)
    assert len(out) >= 9
    return max(out)


@pytest.mark.parametrize("codec", CODECS)
def test_clicks_stay_in_place(codec, tmp_path):
    rates = [
        r
        for r in RATES
        if codec not in ("opus", "mp3", "webm", "m4a") or r in {"opus": OPUS, "mp3": MP3}.get(codec, MP3)
    ]
    for rate in rates:
        source = click_track(tmp_path / "clicks.wav", rate, channels=2 if rate > 16000 else 1)
        media = source if codec == "wav" else convert(source, tmp_path / f"c.{codec}", *CODECS[codec])
        samples = decode(media, 2.375, 10.0)
        assert len(samples) == 160_000
        assert worst_click(samples, 2.375) < 0.005, (codec, rate)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_resampling_has_unity_gain_and_deep_stop_band(rate, tmp_path):
    t = np.arange(4 * rate) / rate
    middle = slice(16000, 48000)

    def through(frequency: float) -> np.ndarray:
        soundfile.write(tmp_path / "t.wav", 0.5 * np.sin(2 * np.pi * frequency * t), rate, subtype="FLOAT")
        return decode_float(tmp_path / "t.wav")[middle].astype(np.float64)

    for frequency in (50, 1000, 0.8 * min(8000, rate / 2)):
        gain = np.sqrt(2 * np.mean(through(frequency) ** 2)) / 0.5
        assert gain == pytest.approx(1, abs=0.002), frequency
    if rate > 16000:
        for frequency in (8300, 9000, 10500):
            level = 20 * np.log10(np.sqrt(2 * np.mean(through(frequency) ** 2)) / 0.5 + 1e-12)
            assert level < -80, (frequency, level)


def test_a_stream_that_begins_late_keeps_its_times(tmp_path):
    source = click_track(tmp_path / "c.wav", 48000)
    late = tmp_path / "late.mkv"
    video = ["-f", "lavfi", "-i", "color=black:d=14:s=32x32:r=5", "-itsoffset", "0.7", "-i", source]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", "-y", *video, "-c:a", "libopus", late], check=True)
    samples = decode(late, 2.0, 10.0)
    assert worst_click(np.roll(samples, -round(0.7 * 16000))[: 9 * 16000 + 8000], 2.0) < 0.005


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_formats(subtype, tmp_path):
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype=subtype)
    found = decode_float(tmp_path / "a.wav")
    assert np.abs(found - wave).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


def test_channels(tmp_path):
    left, right = 0.5 * np.ones(16000), np.zeros(16000)
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], 1), 16000)
    assert decode_float(tmp_path / "s.wav")[8000] == pytest.approx(0.25, abs=1e-4)
    assert decode_float(tmp_path / "s.wav", channel="first")[8000] == pytest.approx(0.5, abs=1e-4)
    soundfile.write(tmp_path / "same.wav", np.stack([left, left], 1), 16000)
    assert decode_float(tmp_path / "same.wav")[8000] == pytest.approx(0.5, abs=1e-4)
    six = np.zeros((16000, 6))
    six[:, 2] = 0.5  # the centre, where films speak
    soundfile.write(tmp_path / "six.wav", six, 16000)
    assert 0.05 < decode_float(tmp_path / "six.wav")[8000] <= 0.5


def test_clipping_and_rounding():
    assert to_int16(np.array([0.0, 1.5, -1.5, 1 / 65536, 0.6 / 32768])).tolist() == [0, 32767, -32768, 0, 1]


def test_nothing_nonsense_and_nan(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    assert len(decode(tmp_path / "empty.wav")) == 0
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0.1] * 500, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(DecodeError, match="non-finite samples"):
        decode(tmp_path / "nan.wav")
    (tmp_path / "text.wav").write_text("hello " * 500)
    with pytest.raises(DecodeError, match="no audio that can be decoded"):
        decode(tmp_path / "text.wav")
    (tmp_path / "zero.mp3").touch()
    with pytest.raises(DecodeError, match="no audio"):
        decode(tmp_path / "zero.mp3")
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.wav")


def test_a_playlist_cannot_make_ffmpeg_open_other_files(tmp_path):
    soundfile.write(tmp_path / "secret.wav", np.zeros(16000), 16000)
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nfile:{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n")
    for name in ("list.m3u8", "list.wav"):
        with pytest.raises(DecodeError):
            decode(tmp_path / name)


@pytest.mark.parametrize("name", ["-rf.wav", "mit leerzeichen.wav", "Ümläüt-雨.wav", "a:b%d.wav", "x'y\"z.wav"])
def test_odd_names(name, tmp_path, monkeypatch):
    soundfile.write(tmp_path / name, np.zeros(1600), 16000)
    monkeypatch.chdir(tmp_path)
    assert len(decode(name)) == 1600


def test_bytes_decode_as_files_do(tmp_path):
    media = convert(click_track(tmp_path / "c.wav", 32000), tmp_path / "c.mp3", *CODECS["mp3"])
    assert np.array_equal(decode(media.read_bytes(), 1, 2), decode(media, 1, 2))


def test_cuts_are_parts_of_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "n.wav", rng.uniform(-0.5, 0.5, 5 * 44100), 44100)
    whole = decode(tmp_path / "n.wav")
    assert np.array_equal(decode(tmp_path / "n.wav", 1.25, 2.5), whole[20000:60000])
    assert len(decode(tmp_path / "n.wav", 4.5, 10.0)) == len(whole) - 72000
    assert len(decode(tmp_path / "n.wav", 9.0, 10.0)) == 0


def test_the_duration_in_a_header_is_read(tmp_path):
    media = convert(click_track(tmp_path / "c.wav", 48000), tmp_path / "c.webm", *CODECS["webm"])
    assert declared_seconds(media) == pytest.approx(14, abs=0.05)


def test_doctor_reports_a_missing_ffmpeg_and_nothing_else(monkeypatch, tmp_path):
    assert problems() == []
    ffmpeg_path.cache_clear()
    monkeypatch.setenv("FRAMEKD_FFMPEG", str(tmp_path / "none"))
    try:
        assert "does not run" in problems()[0]
    finally:
        monkeypatch.undo()
        ffmpeg_path.cache_clear()


@pytest.mark.parametrize("codec", ["mp3", "flac"])
def test_a_stream_has_the_samples_of_the_file(codec, tmp_path):
    media = convert(click_track(tmp_path / "c.wav", 44100), tmp_path / f"c.{codec}", *CODECS[codec])
    blocks = list(decode_stream(media, block_seconds=3))
    assert [len(block) for block in blocks[:-1]] == [48_000] * (len(blocks) - 1) and 0 < len(blocks[-1]) <= 48_000
    assert np.array_equal(np.concatenate(blocks), decode_float(media))


def test_a_stream_of_nothing_nonsense_nan_and_too_much(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    assert list(decode_stream(tmp_path / "empty.wav")) == []
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, 0.1] * 500, np.float32), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("hello " * 500)
    soundfile.write(tmp_path / "long.wav", np.zeros(16000 * 8), 16000)
    for name, words in (
        ("nan.wav", "non-finite"), ("text.wav", "no audio that can be decoded"), ("long.wav", "more than 0.002 hours"),
        ("", "it is a folder"),
    ):  # fmt: skip
        with pytest.raises(DecodeError, match=words):
            list(decode_stream(tmp_path / name, block_seconds=1, max_seconds=7.2))


def test_an_error_of_the_decoder_is_one_also_after_samples_have_come(tmp_path, monkeypatch):
    """A decoder that writes a second of audio and then fails, as one does that runs out of memory."""
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nhead -c 64000 /dev/zero\necho broken >&2\nexit 69\n")
    program.chmod(0o755)
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    ffmpeg_path.cache_clear()
    monkeypatch.setenv("FRAMEKD_FFMPEG", str(program))
    try:
        with pytest.raises(DecodeError, match=r"decoding stopped after 1.0 s \(broken; ffmpeg's exit code 69\)"):
            list(decode_stream(tmp_path / "a.wav"))
    finally:
        monkeypatch.undo()
        ffmpeg_path.cache_clear()


def test_a_stream_that_is_left_early_leaves_no_process(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000 * 60), 16000)
    blocks = decode_stream(tmp_path / "a.wav", block_seconds=1)
    next(blocks)
    blocks.close()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not any(b"a.wav" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
