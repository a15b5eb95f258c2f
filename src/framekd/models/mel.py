"""Log-mel front ends of the models: batched, always fp32, on the waveform's device, one clip never touching another.

Everything here is fixed by the published models (window, filters, floor, statistics); nothing is learned.  A front
end takes a waveform [batch, samples] in -1..1 and gives [batch, 1, mel bins, frames].
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError

SAMPLE_RATE = 16_000
HOP = 160
FLOOR = torch.finfo(torch.float32).eps  # the floor of Kaldi's and of M2D's logarithm
BLOCK = 2**18  # samples of frames at a time on a CPU: 1 MB, what a core's cache holds
GROUP = 16  # filters in one product


class FrontEnd(nn.Module):
    """Base of the front ends: constants that follow the device but keep their precision, and no autocast.

    `extra_hops` + frames = 10-ms hops of the waveform, from which the number of 40-ms output frames follows.
    """

    settings: dict[str, object]
    window: Tensor
    banks: Tensor
    bands: list[tuple[slice, slice]]
    extra_hops: int = 0
    shortest: int = 0  # samples

    def constant(self, name: str, value: Tensor) -> None:
        """Register a constant that is not part of the state dict."""
        self.register_buffer(name, value.float().contiguous(), persistent=False)
        if name == "banks":
            self.bands = narrow(value)

    def _apply(self, fn, recurse: bool = True):
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in self._buffers.items():
            if value is not None and value.dtype != torch.float32:  # model.half(), model.bfloat16()
                self._buffers[name] = kept[name].to(value.device)  # type: ignore[union-attr]
        return self

    @torch.no_grad()
    def forward(
        self, waveform: Float[Tensor, "batch samples"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 1 bins frames"]:
        """Normalised log-mel spectrogram.  `generator`: the draws of a front end that jitters in training.

        Raises UserError for a waveform that is not [batch, samples] of floats, or is shorter than one window.
        """
        if waveform.ndim != 2 or not waveform.is_floating_point():
            raise UserError(
                "A front end expects a waveform of floats in -1..1, shaped [batch, samples]; "
                f"this one is {waveform.dtype} of shape {tuple(waveform.shape)}."
            )
        if waveform.shape[1] < self.shortest:
            raise UserError(
                f"A waveform of {waveform.shape[1]} samples is shorter than one analysis window "
                f"({self.shortest} samples at {SAMPLE_RATE} Hz); pad it with zeros."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            return self.log_mel(waveform.float(), generator).unsqueeze(1)

    def log_mel(
        self, waveform: Float[Tensor, "batch samples"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch bins frames"]:
        raise NotImplementedError


def framed(waveform: Float[Tensor, "batch samples"], *, length: int, centred: bool) -> Tensor:
    """Overlapping frames every 10 ms as a view; `centred` reflects half a window at both ends first."""
    if centred:
        half = length // 2
        before, after = waveform[:, 1 : half + 1].flip(1), waveform[:, -half - 1 : -1].flip(1)
        waveform = torch.cat((before, waveform, after), dim=1)
    return waveform.unfold(-1, length, HOP)


def mel_power(
    frames: Float[Tensor, "batch frames length"],
    banks: Float[Tensor, "bins half"],
    bands: Sequence[tuple[slice, slice]],
    window: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch bins frames"]:
    """Filters applied to the power spectrum |FFT(window(frame))|² of every frame; `bands` of the banks by `narrow`.

    A CPU takes some frames of one clip at a time, so that everything between the waveform and the result stays in
    its cache; a GPU takes all at once.  Squares of real and imaginary parts are added within the product.
    """
    batch, count, length = frames.shape
    mel = frames.new_empty(batch, banks.shape[0], count)
    doubled = banks.repeat_interleave(2, dim=1)
    weights = [doubled[rows, 2 * columns.start : 2 * columns.stop] for rows, columns in bands]
    pieces = [(frames, mel)]
    if frames.device.type == "cpu":
        size = max(1, BLOCK // length)
        cuts = [(i, slice(t, t + size)) for i in range(batch) for t in range(0, count, size)]
        pieces = [(frames[i, cut], mel[i, :, cut]) for i, cut in cuts]
    for piece, into in pieces:
        squares = torch.view_as_real(torch.fft.rfft(window(piece))).square_().flatten(-2).transpose(-1, -2)
        for (rows, columns), weight in zip(bands, weights, strict=True):
            lines = squares[..., 2 * columns.start : 2 * columns.stop, :]
            torch.matmul(weight, lines, out=into[..., rows, :])
    return mel


def narrow(banks: Float[Tensor, "bins half"]) -> list[tuple[slice, slice]]:
    """Groups of neighbouring filters (rows), and the columns in which they are not all zero.

    A mel filter covers a few of the spectrum's lines, so the groups' products are a fifth of the whole.
    """
    bands = []
    for start in range(0, banks.shape[0], GROUP):
        used = banks[start : start + GROUP].any(dim=0).nonzero().flatten().tolist() or [0]
        bands.append((slice(start, start + GROUP), slice(used[0], used[-1] + 1)))
    return bands


class DecibelMel(FrontEnd):
    """ATST-F: 64 HTK mels of a 64-ms Hann window, decibels clipped 80 dB below the clip's own maximum, min-max.

    torchaudio's AmplitudeToDB takes the maximum over the whole batch; here it is the clip's (a score must not
    depend on what else is in the batch).
    """

    extra_hops = -1
    shortest = 513
    lowest, highest = -79.6482, 50.6842

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"kind": "decibel", "n_fft": 1024, "bins": 64, "low": 60.0, "high": 7800.0}
        self.constant("window", torch.hann_window(1024))
        banks = torchaudio.functional.melscale_fbanks(513, 60.0, 7800.0, 64, SAMPLE_RATE, norm=None, mel_scale="htk")
        self.constant("banks", banks.T)

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        power = mel_power(framed(waveform, length=1024, centred=True), self.banks, self.bands, self.window.mul)
        decibels = power.clamp_(min=1e-10).log10_().mul_(10.0)
        floor = (decibels.amax(dim=(1, 2), keepdim=True) - 80.0).clamp_(min=-50.0)
        decibels = decibels.maximum(floor).clamp_(max=80.0)
        scale = 2.0 / (self.highest - self.lowest)
        return decibels.sub_(self.lowest).mul_(scale).sub_(1.0)


class KaldiMel(FrontEnd):
    """Kaldi's filter bank as BEATs (Povey window, 16-bit scale) and ASiT (Hann window, clip mean removed) use it.

    25-ms frames without padding, DC removed and pre-emphasised within each frame, 128 mels of 20–8000 Hz, natural
    logarithm, (x - mean) / (2 std).
    """

    extra_hops = 2
    shortest = 400
    taper: Tensor

    def __init__(self, *, window: str, scale: float, centre_clip: bool, mean: float, std: float) -> None:
        super().__init__()
        self.settings = {
            "kind": "kaldi",
            "window": window,
            "scale": scale,
            "centre_clip": centre_clip,
            "mean": mean,
            "std": std,
        }
        hann = torch.hann_window(400, periodic=False, dtype=torch.float32)
        taper = hann.pow(0.85) if window == "povey" else hann
        self.constant("taper", taper * scale)  # scale is a power of two: exact, wherever it is applied
        self.constant("banks", kaldi_banks(20.0, 8000.0))
        self.centre_clip, self.mean, self.std = centre_clip, mean, std

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.centre_clip:  # in double: the sum must not depend on how a batch is split among threads
            waveform = waveform - waveform.mean(dim=1, keepdim=True, dtype=torch.float64).float()
        power = mel_power(framed(waveform, length=400, centred=False), self.banks, self.bands, self.tapered)
        return power.clamp_(min=FLOOR).log_().sub_(self.mean).div_(2.0 * self.std)

    def tapered(self, frames: Float[Tensor, "*batch 400"]) -> Float[Tensor, "*batch 512"]:
        """Frames without DC, emphasised and tapered, then zeros up to the points of the FFT.

        Emphasis before the taper, product rounded before the difference: frames at the edge of digital silence
        consist of rounding, and come out as Kaldi's.  The first sample needs no rule, taper[0] is 0.
        """
        frames = frames - frames.mean(dim=-1, keepdim=True)
        emphasised = frames[..., 1:] - frames[..., :-1] * 0.97
        padded = frames.new_zeros(*frames.shape[:-1], 512)
        torch.mul(emphasised, self.taper[1:], out=padded[..., 1:400])
        return padded


class EmphasisMel(FrontEnd):
    """fPaSST: pre-emphasised waveform, 25-ms Hann, 128 Kaldi-type mels of 0–7000 Hz, (ln + 4.5) / 5.

    Given a generator in training mode the band edges jitter once per batch: low in 0..9 Hz, high in 6001..8000 Hz.
    """

    extra_hops = 0
    shortest = 258

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"kind": "emphasis", "n_fft": 512, "bins": 128, "low": 0.0, "high": 7000.0}
        window = F.pad(torch.hann_window(400), (56, 56))
        self.constant("window", window)
        self.constant("banks", kaldi_banks(0.0, 7000.0))

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        emphasised = waveform[:, 1:] - waveform[:, :-1] * 0.97
        banks = self.filters(generator)
        bands = self.bands if banks is self.banks else narrow(banks)
        power = mel_power(framed(emphasised, length=512, centred=True), banks, bands, self.window.mul)
        return power.clamp_(min=1e-7).log_().add_(4.5).div_(5.0)

    def filters(self, generator: torch.Generator | None) -> Tensor:
        """The filters of this batch: [128, 257]."""
        if generator is None or not self.training:
            return self.banks
        low, high = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
        return kaldi_banks(float(int(low * 10)), float(8000 - int(high * 2000))).to(self.banks.device)


class SlaneyMel(FrontEnd):
    """M2D: 80 Slaney mels (area normalised) of a 25-ms Hann window, 50–8000 Hz, ln(x + eps).

    The statistics that normalise it are the model's (they come with its checkpoint), see `framekd.models.m2d`.
    """

    extra_hops = -1
    shortest = 201

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"kind": "slaney", "n_fft": 400, "bins": 80, "low": 50.0, "high": 8000.0}
        self.constant("window", torch.hann_window(400))
        banks = torchaudio.functional.melscale_fbanks(
            201, 50.0, 8000.0, 80, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.constant("banks", banks.T)

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        power = mel_power(framed(waveform, length=400, centred=True), self.banks, self.bands, self.window.mul)
        return power.add_(FLOOR).log_()


def kaldi_banks(low: float, high: float, *, bins: int = 128, n_fft: int = 512) -> Float[Tensor, "bins half"]:
    """Triangular filters, equally wide on Kaldi's mel scale; the Nyquist bin stays empty, as Kaldi leaves it."""
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(bins, n_fft, float(SAMPLE_RATE), low, high, 100.0, -500.0, 1.0)
    return F.pad(banks, (0, 1))


def duration_frames(mel_frames: int, extra_hops: int, *, frame_seconds: float = 0.04) -> int:
    """Output frames for a spectrogram of so many 10-ms frames: 250 for 10 s, 100 for 4 s."""
    hops_per_frame = frame_seconds * SAMPLE_RATE / HOP
    return max(1, math.floor((mel_frames + extra_hops) / hops_per_frame + 0.5))
