"""Augmentation of log-mel spectrograms, labels and soft labels on the device, without a loop over clips.

The operations, their order and their distributions are those of the authors' training step (Schmid et al., ICASSP
2025, Sec. 3.2, and its released code): circular time shift, mixup, Freq-MixStyle (Schmid et al., 2022), time mask,
filter augmentation (Nam et al., ICASSP 2022) and frequency warping (random resize and crop of the bins, after BYOL-A).
As there, some draws are per batch and some per clip. Labels and soft labels move with the audio in every operation.

The ``draw_…`` functions draw from one NumPy generator on the CPU, so that a CPU and a GPU make the same decisions. The
other functions are deterministic. The last three operations are linear in each time frame, so they are combined into
one matrix per clip and applied in one product.
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from framekd.config import Augment

Labels = TypeVar("Labels")
"""A dataclass with ``frame_labels``, ``clip_labels``, ``soft_labels`` and ``soft_share`` (tensors or None)."""

LABELS = ("frame_labels", "clip_labels", "soft_labels", "soft_share")


def augment(
    mel: Float[Tensor, "batch 1 bins frames"], batch: Labels, config: Augment, *, generator: np.random.Generator
) -> tuple[Float[Tensor, "batch 1 bins frames"], Labels]:
    """Augment log-mels and the labels of a batch. The arguments are not changed.

    Args:
        mel: normalised log-mels.
        batch: a dataclass with `frame_labels` and `soft_labels` [batch, classes, label frames] (soft labels may also
            be [batch, classes]), `clip_labels` [batch, classes] and `soft_share` [batch], all 0..1 or None. If it has
            `has_frame_labels` ([batch] bool), mixup joins only clips with equal values: the frame labels of the
            others are unknown.
        config: probabilities and strengths.
        generator: source of all draws.
    Returns:
        The augmented log-mels, and `batch` with its labels replaced.
    Raises:
        TypeError: `batch` is not a dataclass.
    """
    labels = {name: value for name in LABELS if (value := getattr(batch, name, None)) is not None}
    size, bins, frames = mel.shape[0], mel.shape[2], mel.shape[3]
    if config.frame_shift > 0:
        mel, labels = frame_shift(mel, labels, draw_shifts(generator, size, frames, config.frame_shift))
    if config.mixup > 0 and generator.random() < config.mixup:
        weight, order = draw_mixture(generator, size, config.mixup_alpha)
        partner = _index(mel, order)
        if (groups := getattr(batch, "has_frame_labels", None)) is not None:
            partner = within(partner, groups)
        mel, labels = mixup(mel, labels, _to(mel, weight), partner)
    scale = offset = matrix = None
    if config.mixstyle > 0 and generator.random() < config.mixstyle:
        weight, order = draw_mixture(generator, size, config.mixstyle_alpha)
        scale, offset = mixstyle_affine(mel, _to(mel, weight), _index(mel, order))
    masked = draw_time_mask(generator, labels, config.time_mask) if config.time_mask > 0 else None
    if config.filter > 0 and generator.random() < config.filter:
        gains = filter_gains(*draw_filter(generator, size, bins, config))
        gains = gains.to(mel.device, mel.dtype, non_blocking=True)
        scale = gains if scale is None else scale * gains
        offset = None if offset is None else offset * gains
    if config.freq_warp > 0 and generator.random() < config.freq_warp:
        matrix = warp_matrix(bins, *draw_warp(generator, bins, config.freq_warp_min))
        matrix = matrix.to(mel.device, mel.dtype, non_blocking=True)
    mel = along_bins(mel, scale, offset, matrix)
    if masked is not None:
        # The mask comes before filter and warping, but both keep a frame of zeros as it is, so it can be applied last.
        mel, labels = time_mask(mel, labels, *masked)
    return mel, _with(batch, labels)


def _with(batch: Any, labels: dict[str, Tensor]) -> Any:
    if not is_dataclass(batch) or isinstance(batch, type):
        raise TypeError(f"augment needs a dataclass of labels, not {type(batch).__name__}")
    return replace(batch, **labels) if labels else batch


# ---------------------------------------------------------------------------------------------- circular time shift


def draw_shifts(generator: np.random.Generator, size: int, frames: int, share: float) -> np.ndarray:
    """Shifts of `size` clips in mel frames: normal with standard deviation ``int(frames * share)``, truncated."""
    return np.trunc(generator.normal(0.0, int(frames * share), size)).astype(np.int64)


def frame_shift(mel: Tensor, labels: dict[str, Tensor], shifts: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    """Roll each clip by its own shift (positive: later), and its labels by the same time, rounded to label frames."""
    frames = mel.shape[-1]
    out = {}
    for name, value in labels.items():
        ratio = max(1, round(frames / value.shape[-1])) if value.ndim == 3 else 1
        out[name] = roll_clips(value, np.rint(shifts / ratio).astype(np.int64)) if value.ndim == 3 else value
    return roll_clips(mel, shifts), out


def roll_clips(values: Tensor, shifts: np.ndarray) -> Tensor:
    """``torch.roll`` along the last axis by one shift per clip."""
    frames = values.shape[-1]
    index = torch.from_numpy((np.arange(frames) - shifts[:, None]) % frames).to(values.device, non_blocking=True)
    index = index.view(len(shifts), *[1] * (values.ndim - 2), frames)
    return values.gather(-1, index.expand(values.shape))


# ------------------------------------------------------------------------------------------------------------- mixup


def draw_mixture(generator: np.random.Generator, size: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight of each clip, the larger of b and 1 - b with b ~ Beta(alpha, alpha), and its partner in a permutation."""
    weight = generator.beta(alpha, alpha, size)
    return np.maximum(weight, 1.0 - weight).astype(np.float32), generator.permutation(size)


def within(order: Int[Tensor, " batch"], groups: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Change the permutation `order` so that partners are in the same group; with one group it stays as it is."""
    shuffled = order[groups[order].to(torch.uint8).argsort(stable=True)]
    partner = torch.empty_like(order)
    partner[groups.to(torch.uint8).argsort(stable=True)] = shuffled
    return partner


def mixup(
    mel: Tensor, labels: dict[str, Tensor], weight: Float[Tensor, " batch"], partner: Int[Tensor, " batch"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """``weight * clip + (1 - weight) * partner`` for the log-mels and all labels."""

    def mix(value: Tensor) -> Tensor:
        part = weight.to(value.dtype).view(-1, *[1] * (value.ndim - 1))
        return torch.lerp(value.index_select(0, partner), value, part)

    return mix(mel), {name: mix(value) for name, value in labels.items()}


def _to(like: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype, non_blocking=True)


def _index(like: Tensor, values: np.ndarray) -> Int[Tensor, " n"]:
    return torch.from_numpy(values).to(like.device, non_blocking=True)


# ----------------------------------------------------------------------------------------------------- Freq-MixStyle


def mixstyle_affine(
    mel: Float[Tensor, "batch 1 bins frames"], weight: Float[Tensor, " batch"], partner: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch 1 bins 1"], Float[Tensor, "batch 1 bins 1"]]:
    """Scale and offset of Freq-MixStyle: each bin gets mean and deviation over time mixed with those of a partner."""
    mean = mel.mean(dim=-1, keepdim=True)
    # The norm of the centred rows is several times faster than torch.var on a CPU, and as exact.
    squares = torch.linalg.vector_norm(mel - mean, dim=-1, keepdim=True).square()
    deviation = (squares / (mel.shape[-1] - 1) + 1e-6).sqrt()
    own = weight.view(-1, 1, 1, 1)
    scale = torch.lerp(deviation.index_select(0, partner), deviation, own) / deviation
    offset = torch.lerp(mean.index_select(0, partner), mean, own) - mean * scale
    return scale, offset


# -------------------------------------------------------------------------------------------------------- time mask


def draw_time_mask(
    generator: np.random.Generator, labels: dict[str, Tensor], longest: float, *, shortest: float = 0.05
) -> tuple[int, int, int]:
    """One segment per batch, in label frames: (start, width, label frames of the clip)."""
    frames = next((value.shape[-1] for value in labels.values() if value.ndim == 3), 250)
    widest = max(1, int(longest * frames))
    width = int(generator.integers(min(int(shortest * frames), widest), widest + 1))
    return int(generator.integers(0, frames - width + 1)), width, frames


def time_mask(
    mel: Tensor, labels: dict[str, Tensor], start: int, width: int, frames: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Set the same time span of log-mels, frame labels and soft labels to zero; clip labels stay."""
    ratio = max(1, round(mel.shape[-1] / frames))
    mel = mel.clone()
    mel[..., start * ratio : (start + width) * ratio] = 0
    out = {}
    for name, value in labels.items():
        out[name] = value.clone() if value.ndim == 3 else value
        if value.ndim == 3:
            out[name][..., start : start + width] = 0
    return mel, out


# ------------------------------------------------------------------------------------ filter and frequency warping


def draw_filter(
    generator: np.random.Generator, size: int, bins: int, config: Augment
) -> tuple[Int[np.ndarray, " limits"], Float[np.ndarray, "batch limits"]]:
    """Limits of random frequency bands, shared by the batch (bins, 0 and `bins` included), and a gain in dB at each."""
    bands = int(generator.integers(config.filter_bands[0], config.filter_bands[1] + 1))
    width = min(config.filter_min_bins, (bins + 1) // bands)
    inner = np.sort(generator.integers(0, bins - bands * width + 1, bands - 1)) + np.arange(1, bands) * width
    limits = np.concatenate([[0], inner, [bins]])
    return limits, generator.uniform(-config.filter_db, config.filter_db, (size, bands + 1))


def filter_gains(
    limits: Int[np.ndarray, " limits"], knots: Float[np.ndarray, "batch limits"]
) -> Float[Tensor, "batch 1 bins 1"]:
    """Gains that are linear in dB between the `knots` at the band `limits`.

    As in the authors' code they multiply the normalised *log*-mel, so this is not a filter in the acoustic sense.
    """
    size, bins = len(knots), int(limits[-1])
    lines = np.zeros((len(limits), bins))
    for band, (low, high) in enumerate(pairwise(limits)):
        rise = np.linspace(0.0, 1.0, high - low)
        lines[band, low:high] += 1.0 - rise
        lines[band + 1, low:high] += rise
    gains = 10.0 ** (knots @ lines / 20.0)
    return torch.from_numpy(gains.astype(np.float32)).view(size, 1, bins, 1)


def draw_warp(generator: np.random.Generator, bins: int, least: float) -> tuple[int, int]:
    """A random run of bins, one per batch: (start, height)."""
    height = int(generator.uniform(least, 1.0) * bins)
    return int(generator.integers(0, bins - height + 1)), height


def warp_matrix(bins: int, start: int, height: int) -> Float[Tensor, "bins bins"]:
    """Bicubic resize (a = -0.75, corners aligned, borders repeated) of `height` bins from `start` to all bins."""
    position = np.arange(bins) * ((height - 1) / max(bins - 1, 1))
    left = np.floor(position).astype(np.int64)
    matrix = np.zeros((bins, bins))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(position - (left + tap))
        near = ((-0.75 + 2) * distance - (-0.75 + 3)) * distance**2 + 1
        far = ((-0.75 * distance + 5 * 0.75) * distance - 8 * 0.75) * distance + 4 * 0.75
        source = start + np.clip(left + tap, 0, height - 1)
        np.add.at(matrix, (np.arange(bins), source), np.where(distance <= 1, near, far))
    return torch.from_numpy(matrix.astype(np.float32))


def along_bins(
    mel: Float[Tensor, "batch 1 bins frames"],
    scale: Float[Tensor, "batch 1 bins 1"] | None,
    offset: Float[Tensor, "batch 1 bins 1"] | None,
    matrix: Float[Tensor, "bins bins"] | None,
) -> Float[Tensor, "batch 1 bins frames"]:
    """``matrix @ (scale * mel + offset)`` in one pass over the spectrograms; None leaves a part out."""
    if matrix is None:
        if scale is None:
            return mel
        return mel * scale if offset is None else torch.addcmul(offset, mel, scale)
    rows = matrix.expand(len(mel), -1, -1) if scale is None else matrix * scale[:, 0].transpose(1, 2)
    if offset is None:
        return torch.bmm(rows, mel[:, 0])[:, None]
    return torch.baddbmm(matrix @ offset[:, 0], rows, mel[:, 0])[:, None]
