"""Scores of clips, and of audio of any length through overlapping windows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from framekd.audio import decode
from framekd.data import ClipSet, chunks
from framekd.events import CLIP_FRAMES, FRAME_RATE

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // FRAME_RATE
"""Samples per label frame."""


@torch.no_grad()
def logits(
    model: Any, waveform: Float[Tensor, "batch samples"], *, precision: str = "fp32"
) -> tuple[Float[Tensor, "batch classes frames"], Float[Tensor, "batch clip_classes"]]:
    """Frame and clip logits (float32) of a model in evaluation mode; precision "bf16" or "fp16" only on a GPU."""
    mel = model.frontend(waveform)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    on = half is not None and waveform.device.type == "cuda"
    with torch.autocast("cuda", half) if on else nullcontext():
        if getattr(model, "head_outputs", "logits") == "probabilities":
            frames, clips = model(mel, outputs="logits")
        else:
            frames, clips = model(mel)
    return frames.float(), clips.float()


def scores(
    model: nn.Module,
    clips: ClipSet,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    weak: bool = False,
    progress: bool = False,
) -> Iterator[tuple[list[str], Float[Tensor, "n classes frames"]]]:
    """Logits of all clips in order, a batch at a time, on the CPU: (ids, frame logits), or with `weak` clip logits."""
    device = _place(model, device)
    model.to(device).eval()
    bar = tqdm(total=len(clips), unit=" clips", desc="scores", file=sys.stderr, disable=not progress)
    for batch in chunks(clips, batch_size):
        frames, whole = logits(model, batch.to(device).waveform, precision=precision)
        yield batch.ids, (whole if weak else frames).cpu()
        bar.update(len(batch.ids))
    bar.close()


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def windowed(
    model: nn.Module,
    waveform: Float[Tensor, " samples"],
    *,
    hop_frames: int = CLIP_FRAMES // 2,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Float[Tensor, "classes frames"]:
    """Frame logits of audio of any length, one frame per 40 ms (the last may reach over the end).

    Windows of 10 s begin every `hop_frames`; where they overlap, logits are averaged with weights that fall linearly
    towards a window's ends, where a model sees one side of the sound only. Audio of up to 10 s is one window.
    """
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected samples of one channel, got shape {list(waveform.shape)}")
    if not 1 <= hop_frames <= CLIP_FRAMES:
        raise ValueError(f"hop_frames is 1 to {CLIP_FRAMES}, not {hop_frames}")
    device = _place(model, device)
    model.to(device).eval()
    frames = -(-len(waveform) // HOP)
    starts = range(0, max(frames - CLIP_FRAMES, 0) + hop_frames, hop_frames) if frames > CLIP_FRAMES else range(1)
    padded = torch.zeros((starts[-1] + CLIP_FRAMES) * HOP)
    padded[: len(waveform)] = waveform
    cuts = padded.unfold(0, CLIP_FRAMES * HOP, hop_frames * HOP)
    ramp = torch.minimum(torch.arange(1, CLIP_FRAMES + 1), torch.arange(CLIP_FRAMES, 0, -1)).float()
    total: Tensor | None = None
    weights = torch.zeros(starts[-1] + CLIP_FRAMES)
    for first in range(0, len(starts), batch_size):
        found, _ = logits(model, cuts[first : first + batch_size].to(device), precision=precision)
        for start, window in zip(starts[first : first + batch_size], found.cpu()):
            if total is None:
                total = window.new_zeros(window.shape[0], len(weights))
            total[:, start : start + CLIP_FRAMES] += window * ramp
            weights[start : start + CLIP_FRAMES] += ramp
    assert total is not None
    return (total / weights)[:, :frames]


@dataclass(frozen=True)
class Prediction:
    """Probabilities [frames, classes] at 25 frames a second, and the events that exceed a threshold."""

    probabilities: Float[np.ndarray, "frames classes"]
    events: list[tuple[float, float, str, float]]
    """(onset, offset, class, highest probability), seconds, sorted by onset."""
    seconds: float


def predict_file(
    model: nn.Module,
    path: Path | str,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> Prediction:
    """Events of an audio file of any length and format.

    smooth: a filter of probabilities [frames, classes] over time, such as ``framekd.metrics.median_filter``.
    """
    samples = decode(path)
    waveform = torch.from_numpy(samples).float() / 32768
    return predict_waveform(
        model, waveform, classes, threshold=threshold, smooth=smooth, batch_size=batch_size, device=device
    )


def predict_waveform(
    model: nn.Module,
    waveform: Float[Tensor, " samples"],
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> Prediction:
    """As :func:`predict_file`, of samples at 16 kHz in -1..1."""
    found = windowed(model, waveform, batch_size=batch_size, device=device).sigmoid().T.contiguous().numpy()
    if found.shape[1] != len(classes):
        raise ValueError(f"the model scores {found.shape[1]} classes, but {len(classes)} names were given")
    filtered = smooth(found) if smooth is not None else found
    seconds = len(waveform) / SAMPLE_RATE
    return Prediction(filtered, decode_events(filtered, classes, threshold=threshold, seconds=seconds), seconds)


def decode_events(
    probabilities: Float[np.ndarray, "frames classes"], classes: Sequence[str], *, threshold: float, seconds: float
) -> list[tuple[float, float, str, float]]:
    """Runs of frames above `threshold`: (onset, offset, class, highest probability), no later than `seconds`."""
    active = np.zeros((len(probabilities) + 2, probabilities.shape[1]), dtype=np.int8)
    active[1:-1] = probabilities > threshold
    edges = np.diff(active, axis=0).T
    label, onset = np.nonzero(edges == 1)
    _, offset = np.nonzero(edges == -1)
    out = []
    for c, first, last in zip(label.tolist(), onset.tolist(), offset.tolist()):
        if (start := first / FRAME_RATE) < seconds:
            end = min(last / FRAME_RATE, seconds)
            out.append((start, end, classes[c], float(probabilities[first:last, c].max())))
    return sorted(out)
