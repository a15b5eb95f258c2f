"""Events in audio of any length: overlapping windows of 10 s, a threshold, and runs of active frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd import inference
from framekd.audio import decode
from framekd.events import active_runs
from framekd.models import FrameModel
from framekd.units import CLIP_FRAMES, FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE


def windowed(
    model: FrameModel,
    waveform: Float[Tensor, " samples"],
    *,
    hop_frames: int = CLIP_FRAMES // 2,
    batch_size: int = 16,
    precision: str = "fp32",
) -> Float[Tensor, "classes frames"]:
    """Frame logits of audio of any length.

    Windows of 10 s begin every `hop_frames`. Where they overlap, logits are averaged with weights that fall linearly
    towards the ends of a window, where the model has context on one side only. Audio of up to 10 s is one window.

    Args:
        model: set to evaluation mode here; it runs on the device that it is on.
        waveform: at 16 kHz, -1 … 1.
        hop_frames: 1 to 250.
        batch_size: windows per forward pass.
        precision: see :func:`framekd.inference.autocast`.
    Returns:
        Logits on the CPU, one frame per 40 ms; the last frame may reach beyond the end.
    Raises:
        ValueError: the waveform is empty or has several channels.
    """
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected samples of one channel, got shape {list(waveform.shape)}")
    if not 1 <= hop_frames <= CLIP_FRAMES:
        raise ValueError(f"hop_frames is 1 to {CLIP_FRAMES}, not {hop_frames}")
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    frames = -(-len(waveform) // FRAME_SAMPLES)
    starts = range(0, max(frames - CLIP_FRAMES, 0) + hop_frames, hop_frames) if frames > CLIP_FRAMES else range(1)
    padded = torch.zeros((starts[-1] + CLIP_FRAMES) * FRAME_SAMPLES)
    padded[: len(waveform)] = waveform
    windows = padded.unfold(0, CLIP_FRAMES * FRAME_SAMPLES, hop_frames * FRAME_SAMPLES)
    ramp = torch.minimum(torch.arange(1, CLIP_FRAMES + 1), torch.arange(CLIP_FRAMES, 0, -1)).float()
    total: Tensor | None = None
    weights = torch.zeros(starts[-1] + CLIP_FRAMES)
    for first in range(0, len(starts), batch_size):
        mel = model.frontend(windows[first : first + batch_size].to(device))
        found, _ = inference.logits(model, mel, precision=precision)
        for start, window in zip(starts[first : first + batch_size], found.cpu()):
            if total is None:
                total = window.new_zeros(window.shape[0], len(weights))
            total[:, start : start + CLIP_FRAMES] += window * ramp
            weights[start : start + CLIP_FRAMES] += ramp
    assert total is not None
    return (total / weights)[:, :frames]


@dataclass(frozen=True)
class Prediction:
    """What a model detected in a recording.

    Attributes:
        probabilities: [frames, classes] at 25 frames per second, filtered.
        events: (onset, offset, class, highest probability), seconds, sorted by onset.
        seconds: length of the recording.
    """

    probabilities: Float[np.ndarray, "frames classes"]
    events: list[tuple[float, float, str, float]]
    seconds: float


def predict_file(
    model: FrameModel,
    path: Path | str,
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 16,
) -> Prediction:
    """Detect events in an audio file of any length and format; arguments as for :func:`predict_waveform`.

    Raises:
        DecodeError: nothing can be decoded.
    """
    waveform = torch.from_numpy(decode(path)).float() / 32768
    return predict_waveform(model, waveform, classes, threshold=threshold, smooth=smooth, batch_size=batch_size)


def predict_waveform(
    model: FrameModel,
    waveform: Float[Tensor, " samples"],
    classes: Sequence[str],
    *,
    threshold: float = 0.5,
    smooth: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 16,
) -> Prediction:
    """Detect events in samples at 16 kHz, -1 … 1.

    Args:
        classes: names of the model's outputs.
        threshold: probability above which a class is active.
        smooth: filter of the probabilities [frames, classes] over time, such as ``framekd.metrics.median_filter``.
        batch_size: windows per forward pass.
    """
    found = windowed(model, waveform, batch_size=batch_size).sigmoid().T.contiguous().numpy()
    if found.shape[1] != len(classes):
        raise ValueError(f"the model has {found.shape[1]} classes, but {len(classes)} names were given")
    filtered = smooth(found) if smooth is not None else found
    seconds = len(waveform) / SAMPLE_RATE
    return Prediction(filtered, decode_events(filtered, classes, threshold=threshold, seconds=seconds), seconds)


def decode_events(
    probabilities: Float[np.ndarray, "frames classes"], classes: Sequence[str], *, threshold: float, seconds: float
) -> list[tuple[float, float, str, float]]:
    """Runs of frames above `threshold`, cut at `seconds`.

    Returns:
        (onset, offset, class, highest probability), sorted by onset.
    """
    out = []
    for label, begin, end in zip(*(column.tolist() for column in active_runs(probabilities > threshold))):
        if (onset := begin / FRAME_RATE) < seconds:
            highest = float(probabilities[begin:end, label].max())
            out.append((onset, min(end / FRAME_RATE, seconds), classes[label], highest))
    return sorted(out)
