"""Frame logits and embeddings of audio of any length: overlapping windows of 10 s, merged in a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from framekd import inference
from framekd.models import FrameModel
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES

HOP_FRAMES = CLIP_FRAMES // 2


def model_device(model: FrameModel) -> torch.device:
    """The device that a model is on."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def windowed(
    model: FrameModel,
    waveform: Float[Tensor, " samples"],
    *,
    hop_frames: int = HOP_FRAMES,
    batch_size: int = 16,
    precision: str = "fp32",
) -> Float[Tensor, "classes frames"]:
    """Frame logits of a whole waveform; see :func:`logits_stream`.

    Raises:
        ValueError: the waveform is empty or has several channels.
    """
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"expected samples of one channel, got shape {list(waveform.shape)}")
    blocks = logits_stream(model, [waveform.numpy()], hop_frames=hop_frames, batch_size=batch_size, precision=precision)
    return torch.cat(list(blocks)).T


def logits_stream(
    model: FrameModel,
    blocks: Iterable[Float[np.ndarray, " samples"]],
    *,
    hop_frames: int = HOP_FRAMES,
    batch_size: int = 16,
    precision: str = "fp32",
) -> Iterator[Float[Tensor, "frames classes"]]:
    """Frame logits of audio of any length; arguments and result as of :func:`merged`.

    Args:
        model: set to evaluation mode here; it runs on the device that it is on.
        precision: see :func:`framekd.inference.autocast`.
    """

    def compute(waves: Tensor) -> Tensor:
        return inference.logits(model, model.frontend(waves.to(device)), precision=precision)[0].transpose(1, 2)

    model.eval()
    device = model_device(model)
    return merged(blocks, compute, hop_frames=hop_frames, batch_size=batch_size)


def embedding_stream(
    model: FrameModel,
    blocks: Iterable[Float[np.ndarray, " samples"]],
    *,
    hop_frames: int = HOP_FRAMES,
    batch_size: int = 16,
    precision: str = "fp32",
) -> Iterator[Float[Tensor, "frames width"]]:
    """Frame embeddings of audio of any length: the transformer's aligned sequence. See :func:`logits_stream`."""

    @torch.inference_mode()
    def compute(waves: Tensor) -> Tensor:
        mel = model.frontend(waves.to(device))
        with inference.autocast(device, precision):
            return model.features(mel).float()

    model.eval()
    device = model_device(model)
    return merged(blocks, compute, hop_frames=hop_frames, batch_size=batch_size)


def merged(
    blocks: Iterable[Float[np.ndarray, " samples"]],
    compute: Callable[[Float[Tensor, "batch samples"]], Float[Tensor, "batch frames width"]],
    *,
    hop_frames: int = HOP_FRAMES,
    batch_size: int = 16,
) -> Iterator[Float[Tensor, "frames width"]]:
    """Values of frames of audio of any length; the memory does not depend on the length.

    Windows of 10 s begin every `hop_frames`. Where they overlap, values are averaged with weights that fall linearly
    towards the ends of a window, where the model has context on one side only. Audio of up to 10 s is one window.

    Args:
        blocks: consecutive parts of the waveform at 16 kHz, -1 … 1.
        compute: gives the 250 frames of each of several windows.
        hop_frames: 1 to 250; with 250 the windows do not overlap.
        batch_size: windows per call of `compute`.
    Yields:
        Values on the CPU, one frame per 40 ms, in consecutive blocks; the last frame may reach beyond the end. Without
        any sample, nothing.
    """
    if not 1 <= hop_frames <= CLIP_FRAMES:
        raise ValueError(f"hop_frames is 1 to {CLIP_FRAMES}, not {hop_frames}")
    ramp = torch.minimum(torch.arange(1, CLIP_FRAMES + 1), torch.arange(CLIP_FRAMES, 0, -1)).float()[:, None]
    total, weights, frames = torch.zeros(0), torch.zeros(CLIP_FRAMES, 1), 0
    waiting = _windows(blocks, hop_frames)
    while batch := list(islice(waiting, batch_size)):
        for window in compute(torch.from_numpy(np.stack([wave for wave, _ in batch]))).cpu():
            if len(total):  # the frames before this window are complete
                yield total[:hop_frames] / weights[:hop_frames]
                total, weights = (_shifted(values, hop_frames) for values in (total, weights))
            else:
                total = torch.zeros_like(window)
            total += window * ramp
            weights += ramp
        frames = batch[-1][1]
    if frames:
        yield total[:frames] / weights[:frames]


def _windows(blocks: Iterable[np.ndarray], hop_frames: int) -> Iterator[tuple[np.ndarray, int]]:
    """Windows of 10 s every `hop_frames`, the last one padded with zeros, and the number of their frames with audio."""
    size, step = CLIP_FRAMES * FRAME_SAMPLES, hop_frames * FRAME_SAMPLES
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block]) if len(rest) else np.asarray(block, np.float32)
        while len(rest) > size:
            yield rest[:size], CLIP_FRAMES
            rest = rest[step:]
    if len(rest):
        yield np.pad(rest, (0, size - len(rest))), -(-len(rest) // FRAME_SAMPLES)


def _shifted(values: Tensor, by: int) -> Tensor:
    """Rows moved up by `by`, zeros behind them."""
    return torch.cat([values[by:], torch.zeros_like(values[:by])])
