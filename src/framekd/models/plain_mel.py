"""The front ends in slices and matrix products, for formats without an FFT that all their runtimes have, such as ONNX.

Constants and settings are those of :mod:`framekd.models.mel`, whose spectrograms these are, but for rounding.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models.mel import FLOOR, DecibelMel, EmphasisMel, FrontEnd, KaldiMel, SlaneyMel
from framekd.units import MEL_HOP


class PlainFrontEnd(nn.Module):
    """A front end for export: no FFT, no loop over the batch, nothing in place, lengths fixed when it is traced.

    Args:
        front_end: the front end that it equals.

    Raises:
        UserError: a switch of the front end cannot be exported: half precision rounds within the FFT, and ATST-F's
            maximum of the batch makes the scores of a clip depend on the others.
    """

    dft: Tensor

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        if bad := [f"{key}: {value}" for key, value in front_end.switched.items() if key != "norm_stats"]:
            raise UserError(
                f"A model whose front end is switched to {bad[0]} cannot be exported; train or evaluate it with the "
                "default of front_ends, or use framekd itself."
            )
        if not isinstance(front_end, DecibelMel | KaldiMel | EmphasisMel | SlaneyMel):
            raise UserError(f"The front end {type(front_end).__name__} cannot be exported; add it to plain_mel.py.")
        self.front_end = front_end
        n_fft = 2 * (front_end.banks.shape[1] - 1)
        turns = torch.outer(torch.arange(n_fft), torch.arange(n_fft // 2 + 1)) % n_fft
        angle = turns.double() * (2 * math.pi / n_fft)
        self.register_buffer("dft", torch.cat((angle.cos(), angle.sin()), dim=1).float())

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 1 bins frames"]:
        """Compute the normalised log-mel spectrogram of 16-kHz samples in -1..1."""
        front = self.front_end
        if isinstance(front, DecibelMel):
            mel = self.mel_power(framed(reflected(waveform, 512), 1024) * front.window)
            decibels = mel.clamp(min=1e-10).log10() * 10.0
            floor = (decibels.amax(dim=(1, 2), keepdim=True) - 80.0).clamp(min=-50.0)
            decibels = decibels.maximum(floor).clamp(max=80.0)
            out = (decibels - front.lowest) * (2.0 / (front.highest - front.lowest)) - 1.0
        elif isinstance(front, KaldiMel):
            if front.centre_clip:
                waveform = waveform - waveform.double().mean(dim=1, keepdim=True).float()
            frames = framed(waveform, 400)
            frames = frames - frames.mean(dim=-1, keepdim=True)
            emphasised = (frames[..., 1:] - frames[..., :-1] * 0.97) * front.taper[1:]
            mel = self.mel_power(F.pad(emphasised, (1, 112)))
            out = (mel.clamp(min=FLOOR).log() - front.mean) / (2.0 * front.std)
        elif isinstance(front, EmphasisMel):
            emphasised = waveform[:, 1:] - waveform[:, :-1] * 0.97
            mel = self.mel_power(framed(reflected(emphasised, 256), 512) * front.window)
            out = (mel.clamp(min=1e-7).log() + 4.5) / 5.0
        else:
            assert isinstance(front, SlaneyMel)
            mel = self.mel_power(framed(reflected(waveform, 200), 400) * front.window)
            out = ((mel + FLOOR).log() - front.norm[0]) / front.norm[1]
        return out.unsqueeze(1)

    def mel_power(self, frames: Float[Tensor, "batch frames n_fft"]) -> Float[Tensor, "batch bins frames"]:
        """Apply the mel filters to the power spectrum of tapered frames."""
        real, imaginary = (frames @ self.dft).chunk(2, dim=-1)
        power = real * real + imaginary * imaginary
        return (power @ self.front_end.banks.T).transpose(1, 2)


def reflected(waveform: Float[Tensor, "batch samples"], half: int) -> Float[Tensor, "batch padded"]:
    """Pad both ends by reflection."""
    return F.pad(waveform.unsqueeze(1), (half, half), mode="reflect").squeeze(1)


def framed(waveform: Float[Tensor, "batch samples"], length: int) -> Float[Tensor, "batch frames length"]:
    """Cut overlapping frames every 10 ms, from neighbouring pieces of 10 ms: ONNX has no strided view."""
    count, pieces = 1 + (waveform.shape[1] - length) // MEL_HOP, -(-length // MEL_HOP)
    samples = (count + pieces - 1) * MEL_HOP
    hops = F.pad(waveform, (0, samples - waveform.shape[1])).view(-1, count + pieces - 1, MEL_HOP)
    return torch.cat([hops[:, i : i + count] for i in range(pieces)], dim=2)[..., :length]
