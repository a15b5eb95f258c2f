"""A page that plays a recording along its spectrogram and its detected events: one file that asks for nothing else."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib import colormaps
from matplotlib.image import imsave

from framekd.audio import compress
from framekd.overview import Overview
from framekd.predict import Prediction

HOUR = 3600.0
MAX_SECONDS = 2 * HOUR
"""Longest audio in a page: 22 MB of mp3, 29 MB of text. A longer recording's page plays its first two hours."""
MAX_ROWS = 40
"""Most classes that have a row above each other; the table has the events of all."""


def page(path: Path, found: Prediction, overview: Overview, *, title: str) -> str:
    """The page of a recording.

    Args:
        path: the recording, from which the audio of the page is made: mono mp3, 48 kbit/s up to an hour, 24 kbit/s
            above.
        found: its events.
        overview: of the same recording.
        title: of the page.
    Raises:
        DecodeError: the audio cannot be compressed.
    """
    lengths = (found.events.offset - found.events.onset).groupby(found.events.event_label).sum()
    rows = lengths.sort_values(ascending=False).index[:MAX_ROWS].tolist()
    environment = Environment(loader=PackageLoader("framekd"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("recording.html.j2").render(
        title=title,
        seconds=round(found.seconds, 3),
        rows=rows,
        hidden=len(lengths) - len(rows),
        peaks=found.peaks.head(5).to_dict("records"),
        events=found.events.round(3).values.tolist(),
        picture=_base64(spectrogram_png(overview)),
        audio=_base64(audio_mp3(path, found.seconds)),
        played_hours=MAX_SECONDS / HOUR if found.seconds > MAX_SECONDS else None,
    )


def audio_mp3(path: Path, seconds: float) -> bytes:
    """The audio of a page of a recording of `seconds`."""
    rate, kbit = (24_000, 48) if seconds <= HOUR else (16_000, 24)
    with tempfile.TemporaryDirectory(prefix="framekd-") as folder:
        target = Path(folder) / "audio.mp3"
        compress(path, target, sample_rate=rate, kbit=kbit, max_seconds=MAX_SECONDS)
        return target.read_bytes()


def spectrogram_png(overview: Overview) -> bytes:
    """The spectrogram as a picture, a pixel per column and band."""
    levels, _ = overview.spectrogram()
    shades = np.clip((levels.T[::-1] - levels.max() + 80) / 80, 0, 1)
    out = io.BytesIO()
    imsave(out, colormaps["magma"](shades), format="png")
    return out.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
