"""Example clips with their scores, which the evaluation keeps for the report: one small .npz file.

Arrays: `ids` [N], `classes` [C], `waveforms` [N, samples] int16 at 16 kHz, `scores` [N, C, T] float16 probabilities,
`events` [N] JSON lists of (onset, offset, class), and the scalars `title` and `frame_seconds`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framekd.files import replacing
from framekd.units import FRAME_SECONDS


@dataclass(frozen=True)
class Example:
    """A clip: audio (int16 [samples], 16 kHz), true events (onset, offset, class) and scores [classes, frames]."""

    id: str
    waveform: np.ndarray
    events: list[tuple[float, float, str]]
    scores: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Clips scored by one model (named by `title`); `classes` are the rows of the scores."""

    title: str
    classes: list[str]
    frame_seconds: float
    clips: list[Example]


def write_examples(
    path: str | Path,
    clips: Sequence[Example],
    *,
    classes: Sequence[str],
    title: str,
    frame_seconds: float = FRAME_SECONDS,
) -> None:
    """Write `clips` to `path`.

    Args:
        clips: of one length; waveforms int16 or float in -1..1, scores as probabilities.
        classes: names of the scores' rows.
        title: name of the model.
        frame_seconds: length of a frame of the scores.
    """
    waves = np.stack([np.asarray(clip.waveform) for clip in clips])
    if waves.dtype.kind == "f":
        waves = np.clip(np.round(waves * 32767), -32768, 32767)
    scores = np.stack([np.asarray(clip.scores) for clip in clips])
    if scores.ndim != 3 or scores.shape[1] != len(classes):
        raise ValueError(f"{path}: expected scores [clips, {len(classes)}, frames], not {scores.shape}")
    events = [json.dumps([[float(on), float(off), name] for on, off, name in clip.events]) for clip in clips]
    with replacing(path) as aside:
        np.savez_compressed(
            aside,
            ids=np.array([clip.id for clip in clips]),
            classes=np.array(list(classes)),
            waveforms=waves.astype(np.int16),
            scores=scores.astype(np.float16),
            events=np.array(events),
            title=np.array(title),
            frame_seconds=np.array(frame_seconds),
        )


def read_examples(path: str | Path) -> Examples:
    """The clips that :func:`write_examples` wrote."""
    with np.load(path, allow_pickle=False) as file:
        clips = [
            Example(
                id=str(name),
                waveform=wave,
                events=[(on, off, label) for on, off, label in json.loads(str(events))],
                scores=scores.astype(np.float32),
            )
            for name, wave, events, scores in zip(file["ids"], file["waveforms"], file["events"], file["scores"])
        ]
        return Examples(
            title=str(file["title"]),
            classes=[str(name) for name in file["classes"]],
            frame_seconds=float(file["frame_seconds"]),
            clips=clips,
        )
