"""Some clips with their scores, kept by the evaluation for people to look at: one small .npz file.

Arrays: `ids` [N], `classes` [C], `waveforms` [N, samples] int16 at 16 kHz, `scores` [N, C, T] float16 probabilities,
`events` [N] JSON lists of (onset, offset, class), and the scalars `title` and `frame_seconds`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Example:
    """A clip: its audio (int16, 16 kHz), its true events, and the scores [classes, frames] that it got."""

    id: str
    waveform: np.ndarray
    events: list[tuple[float, float, str]]
    scores: np.ndarray


@dataclass(frozen=True)
class Examples:
    """Clips that one model (named by `title`) scored, with the classes that the scores' rows mean."""

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
    frame_seconds: float = 0.04,
) -> None:
    """Write `clips` to `path`; scores are probabilities, waveforms int16 or float in -1..1, all of one length."""
    waves = np.stack([np.asarray(clip.waveform) for clip in clips])
    if waves.dtype.kind == "f":
        waves = np.clip(np.round(waves * 32767), -32768, 32767)
    scores = np.stack([np.asarray(clip.scores) for clip in clips])
    if scores.ndim != 3 or scores.shape[1] != len(classes):
        raise ValueError(f"{path}: expected scores [clips, {len(classes)}, frames], not {scores.shape}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    events = [json.dumps([[float(on), float(off), name] for on, off, name in clip.events]) for clip in clips]
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
    aside.replace(path)


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
