"""Sound of the example clips, inside the page."""

from __future__ import annotations

import base64
import tempfile
import wave
from pathlib import Path

import numpy as np

from framekd.audio import DecodeError, compress
from framekd.units import SAMPLE_RATE


def audio(waveform: np.ndarray) -> str | None:
    """A clip as mp3 in base64: 24 kbit/s, 40 kB of page for 10 s. None where ffmpeg cannot make it."""
    with tempfile.TemporaryDirectory(prefix="framekd-") as folder:
        source, target = Path(folder) / "clip.wav", Path(folder) / "clip.mp3"
        with wave.open(str(source), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(np.ascontiguousarray(waveform, "<i2").tobytes())
        try:
            compress(source, target, sample_rate=SAMPLE_RATE, kbit=24, max_seconds=60)
        except DecodeError:
            return None
        return base64.b64encode(target.read_bytes()).decode()
