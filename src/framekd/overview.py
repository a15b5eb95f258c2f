"""A recording of any length in few columns: its spectrogram, and the highest scores of each class, for pictures."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torchaudio.functional import melscale_fbanks

from framekd.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE

COLUMNS, BANDS, FFT = 2048, 80, 1024


class Pooled:
    """Rows of a growing array, pooled by their maximum so that there are never more than `limit`.

    Attributes:
        factor: how many rows a pooled row stands for; a power of two.
    """

    def __init__(self, limit: int = COLUMNS) -> None:
        self.limit, self.factor = limit, 1
        self.rows: np.ndarray | None = None  # pooled
        self.rest: np.ndarray | None = None  # fewer than `factor`, not pooled yet

    def add(self, block: Float[np.ndarray, "rows values"]) -> None:
        """Append rows."""
        rest = block if self.rest is None else np.concatenate([self.rest, block])
        whole = len(rest) // self.factor
        fresh = rest[: whole * self.factor].reshape(whole, self.factor, -1).max(1)
        self.rows = fresh if self.rows is None else np.concatenate([self.rows, fresh])
        self.rest = rest[whole * self.factor :].copy()
        while len(self.rows) > self.limit:
            pairs = len(self.rows) // 2
            odd = self.rows[2 * pairs :].repeat(self.factor, axis=0)
            self.rest = np.concatenate([odd, self.rest])
            self.rows = self.rows[: 2 * pairs].reshape(pairs, 2, -1).max(1)
            self.factor *= 2

    def values(self) -> Float[np.ndarray, "columns values"]:
        """All pooled rows; the last may stand for fewer rows than the others."""
        if self.rows is None or self.rest is None:
            return np.zeros((0, 0), np.float32)
        return np.concatenate([self.rows, self.rest.max(0, keepdims=True)]) if len(self.rest) else self.rows


class Overview:
    """What pictures show of a recording; the memory does not depend on its length."""

    def __init__(self) -> None:
        self._levels, self._scores = Pooled(), Pooled()
        self._waiting = np.zeros(FFT // 2, np.float32)
        self._mel = melscale_fbanks(FFT // 2 + 1, 40.0, SAMPLE_RATE / 2, BANDS, SAMPLE_RATE, norm="slaney").numpy()
        self._window = np.hanning(FFT).astype(np.float32)

    def add_audio(self, block: Float[np.ndarray, " samples"]) -> None:
        """Append samples at 16 kHz."""
        samples = np.concatenate([self._waiting, block])
        count = max(0, (len(samples) - FFT) // FRAME_SAMPLES + 1)
        if count:
            self._levels.add(self._decibels(samples, count))
        self._waiting = samples[count * FRAME_SAMPLES :]

    def _decibels(self, samples: np.ndarray, count: int) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(samples, FFT)[::FRAME_SAMPLES][:count]
        power = np.abs(torch.fft.rfft(torch.from_numpy(frames * self._window)).numpy()) ** 2
        return (10 * np.log10(power @ self._mel + 1e-9)).astype(np.float32)

    def add_scores(self, block: Float[np.ndarray, "frames classes"]) -> None:
        """Append scores of frames of 40 ms."""
        self._scores.add(block)

    def spectrogram(self) -> tuple[Float[np.ndarray, "columns bands"], float]:
        """Levels in dB, lowest band first, and the seconds of a column."""
        levels = self._levels.values()
        if not len(levels):  # shorter than a frame
            levels = self._decibels(np.pad(self._waiting, (0, FFT))[:FFT], 1)
        return levels, self._levels.factor / FRAME_RATE

    def scores(self) -> tuple[Float[np.ndarray, "columns classes"], float]:
        """The highest score of each class in each column, and the seconds of a column."""
        return self._scores.values(), self._scores.factor / FRAME_RATE
