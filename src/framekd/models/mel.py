"""Log-mel front ends of the models: fp32, on the waveform's device, each clip independent of its batch.

Switches (:data:`SWITCHES`) make them follow the released code in the places where it differs.

The published models fix all constants (window, filters, floor, statistics); nothing is learned. A front end maps a
waveform [batch, samples] in -1..1 to [batch, 1, mel bins, frames].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchaudio
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.units import MEL_HOP, SAMPLE_RATE

FLOOR = torch.finfo(torch.float32).eps  # the floor of Kaldi's and of M2D's logarithm
BLOCK = 2**18  # samples of frames per step on a CPU: 1 MB, the size of a core's cache
GROUP = 16  # filters per matrix product
SWITCHES = ("maximum", "precision", "norm_stats")
"""Settings of front ends that have a choice. A checkpoint has one only where it is not the default:

- maximum (ATST-F): "clip", or "batch": the 80 dB count down from the batch's maximum.
- precision (fPaSST, M2D, ASiT): "fp32", or "fp16": some steps round as under the released code's autocast.
- norm_stats (M2D): mean and standard deviation of the log-mel; -7.1 and 4.2 if absent.
"""
PRECISIONS = ("fp32", "fp16")
M2D_NORM_STATS = (-7.1, 4.2)


def halved(values: Tensor) -> Tensor:
    """Round to float16 and back: what a step in half precision reads and writes (its sums are float32)."""
    return values.half().float()


class FrontEnd(nn.Module):
    """Base class of the front ends. Constants follow the model's device but stay in fp32.

    Attributes:
        settings: the constants' origin and the switches, stored in checkpoints and compared on loading.
        choices: switches with a list of values, the default first.
        extra_hops: 10-ms hops of the waveform minus frames of the spectrogram.
        shortest: fewest samples of a waveform.
    """

    settings: dict[str, Any]
    choices: Mapping[str, Sequence[str]] = {}
    window: Tensor
    banks: Tensor
    bands: list[tuple[slice, slice]]
    extra_hops: int = 0
    shortest: int = 0

    def constant(self, name: str, value: Tensor) -> None:
        """Register a constant outside the state dict."""
        self.register_buffer(name, value.float().contiguous(), persistent=False)
        if name == "banks":
            self.bands = narrow(value)

    def switch(self, values: Mapping[str, Any]) -> None:
        """Set switches; a default value leaves no trace in `settings`.

        Raises:
            UserError: this front end has no such switch, or the switch no such value.
        """
        for key, value in values.items():
            if value not in self.choices.get(key, ()):
                known = ", ".join(f"{name}: {' or '.join(of)}" for name, of in self.choices.items()) or "none"
                raise UserError(f"This front end has no switch {key}: {value}; its switches are {known}.")
            self.settings.pop(key, None)
            if value != self.choices[key][0]:
                self.settings[key] = value

    @property
    def switched(self) -> dict[str, Any]:
        """The switches that are not at their default."""
        return {key: value for key, value in self.settings.items() if key in SWITCHES}

    @property
    def half_precision(self) -> bool:
        """Whether some steps run in half precision."""
        return self.settings.get("precision") == "fp16"

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
        """Compute the normalised log-mel spectrogram.

        Args:
            waveform: 16-kHz samples in -1..1.
            generator: random numbers of a front end that jitters in training.

        Raises:
            UserError: the waveform is not [batch, samples] of floats, or is shorter than a window.
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
        """Compute the spectrogram of a checked waveform; each front end defines it."""
        raise NotImplementedError


def framed(
    waveform: Float[Tensor, "batch samples"], *, length: int, centred: bool
) -> Float[Tensor, "batch frames length"]:
    """Cut overlapping frames every 10 ms; `centred` first pads both ends by reflection of half a window."""
    if centred:
        half = length // 2
        before, after = waveform[:, 1 : half + 1].flip(1), waveform[:, -half - 1 : -1].flip(1)
        waveform = torch.cat((before, waveform, after), dim=1)
    return waveform.unfold(-1, length, MEL_HOP)


def mel_power(
    frames: Float[Tensor, "batch frames length"],
    banks: Float[Tensor, "bins half"],
    bands: Sequence[tuple[slice, slice]],
    window: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch bins frames"]:
    """Apply mel filters to the power spectrum |FFT(window(frame))|² of every frame.

    A CPU processes BLOCK samples of a clip at a time, so that intermediate results stay in its cache; a GPU processes
    all at once. The matrix product with doubled filters adds the squares of real and imaginary parts.

    Args:
        frames: output of `framed`.
        banks: filters over the lines of the spectrum.
        bands: output of `narrow`.
        window: maps frames to tapered frames as long as the FFT.
    """
    batch, count, length = frames.shape
    mel = frames.new_empty(batch, banks.shape[0], count)
    doubled = banks.repeat_interleave(2, dim=1)
    weights = [doubled[rows, 2 * columns.start : 2 * columns.stop] for rows, columns in bands]
    for piece, into in pieces(frames, mel, max(1, BLOCK // length)):
        squares = torch.view_as_real(torch.fft.rfft(window(piece))).square_().flatten(-2).transpose(-1, -2)
        for (rows, columns), weight in zip(bands, weights, strict=True):
            lines = squares[..., 2 * columns.start : 2 * columns.stop, :]
            torch.matmul(weight, lines, out=into[..., rows, :])
    return mel


def pieces(frames: Tensor, mel: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut frames and their mels into parts of `size` frames, which stay in a CPU's cache; a GPU takes all at once."""
    if frames.device.type != "cpu":
        return [(frames, mel)]
    cuts = [(i, slice(t, t + size)) for i in range(len(frames)) for t in range(0, frames.shape[1], size)]
    return [(frames[i, cut], mel[i, :, cut]) for i, cut in cuts]


def narrow(banks: Float[Tensor, "bins half"]) -> list[tuple[slice, slice]]:
    """Find, for each group of neighbouring filters (rows), the columns that are not all zero.

    A mel filter covers a few lines of the spectrum, so the products of the groups cost a fifth of the whole product.
    """
    bands = []
    for start in range(0, banks.shape[0], GROUP):
        used = banks[start : start + GROUP].any(dim=0).nonzero().flatten().tolist() or [0]
        bands.append((slice(start, start + GROUP), slice(used[0], used[-1] + 1)))
    return bands


class DecibelMel(FrontEnd):
    """ATST-F: 64 HTK mels of a 64-ms Hann window, decibels limited to 80 dB below the clip's maximum, then min-max.

    The authors take the maximum of the whole batch; with the clip's own, a score does not depend on the batch.
    """

    choices: Mapping[str, Sequence[str]] = {"maximum": ("clip", "batch")}

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
        over = (0, 1, 2) if self.settings.get("maximum") == "batch" else (1, 2)
        floor = (decibels.amax(dim=over, keepdim=True) - 80.0).clamp_(min=-50.0)
        decibels = decibels.maximum(floor).clamp_(max=80.0)
        scale = 2.0 / (self.highest - self.lowest)
        return decibels.sub_(self.lowest).mul_(scale).sub_(1.0)


class KaldiMel(FrontEnd):
    """Kaldi's filter bank of BEATs (Povey window, 16-bit scale) and ASiT (Hann window, clip mean removed).

    25-ms frames without padding, mean removed and pre-emphasis within each frame, 128 mels of 20–8000 Hz, natural
    logarithm, (x - mean) / (2 std). In half precision (ASiT alone: BEATs' scale exceeds float16) the power
    spectrum, the filters and their product are rounded.
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
        self.constant("taper", taper * scale)  # scale is a power of two, thus exact
        self.constant("banks", kaldi_banks(20.0, 8000.0))
        self.centre_clip, self.mean, self.std = centre_clip, mean, std
        self.choices = {"precision": PRECISIONS} if scale == 1.0 else {}

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.centre_clip:  # in double, the mean does not depend on the number of threads
            waveform = waveform - waveform.mean(dim=1, keepdim=True, dtype=torch.float64).float()
        frames = framed(waveform, length=400, centred=False)
        if self.half_precision:
            lines = torch.fft.rfft(self.tapered(frames)).abs().square()
            power = halved(halved(self.banks) @ halved(lines).transpose(1, 2))
        else:
            power = mel_power(frames, self.banks, self.bands, self.tapered)
        return power.clamp_(min=FLOOR).log_().sub_(self.mean).div_(2.0 * self.std)

    def tapered(self, frames: Float[Tensor, "*batch 400"]) -> Float[Tensor, "*batch 512"]:
        """Remove the mean, emphasise, taper, and pad with zeros to the length of the FFT.

        Emphasis comes before the taper and its product is rounded before the difference, as in Kaldi: frames at the
        edge of digital silence consist of rounding errors. The first sample does not matter: taper[0] is 0.
        """
        frames = frames - frames.mean(dim=-1, keepdim=True)
        emphasised = frames[..., 1:] - frames[..., :-1] * 0.97
        padded = frames.new_zeros(*frames.shape[:-1], 512)
        torch.mul(emphasised, self.taper[1:], out=padded[..., 1:400])
        return padded


class EmphasisMel(FrontEnd):
    """fPaSST: pre-emphasised waveform, 25-ms Hann window, 128 Kaldi-type mels of 0–7000 Hz, (ln + 4.5) / 5.

    With a generator in training mode, the band edges are drawn per batch: low in 0..9 Hz, high in 6001..8000 Hz. In
    half precision the waveform is rounded before and after the pre-emphasis, and so is its coefficient.
    """

    choices: Mapping[str, Sequence[str]] = {"precision": PRECISIONS}

    extra_hops = 0
    shortest = 258

    def __init__(self) -> None:
        super().__init__()
        self.settings = {"kind": "emphasis", "n_fft": 512, "bins": 128, "low": 0.0, "high": 7000.0}
        window = F.pad(torch.hann_window(400), (56, 56))
        self.constant("window", window)
        self.constant("banks", kaldi_banks(0.0, 7000.0))

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.half_precision:
            waveform = halved(waveform)
            emphasised = halved(waveform[:, 1:] - waveform[:, :-1] * 0.97021484375)  # 0.97 in float16
        else:
            emphasised = waveform[:, 1:] - waveform[:, :-1] * 0.97
        banks = self.filters(generator)
        bands = self.bands if banks is self.banks else narrow(banks)
        banks = banks.to(waveform.device, non_blocking=True)
        power = mel_power(framed(emphasised, length=512, centred=True), banks, bands, self.window.mul)
        return power.clamp_(min=1e-7).log_().add_(4.5).div_(5.0)

    def filters(self, generator: torch.Generator | None) -> Tensor:
        """Return the filters of this batch, [128, 257]; drawn ones are on the host, where `narrow` reads them."""
        if generator is None or not self.training:
            return self.banks
        low, high = torch.rand(2, generator=generator, device=generator.device, dtype=torch.float64).tolist()
        return kaldi_banks(float(int(low * 10)), float(8000 - int(high * 2000)))


class SlaneyMel(FrontEnd):
    """M2D: 80 Slaney mels (area normalised) of a 25-ms Hann window, 50–8000 Hz, (ln(x + eps) - mean) / std.

    In half precision the transform (in the authors' code a convolution with windowed cosines and sines) and the product
    with the filters round what they read and write.
    """

    choices: Mapping[str, Sequence[str]] = {"precision": PRECISIONS}
    norm: Tensor

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
        self.constant("norm", torch.tensor(M2D_NORM_STATS))

    def switch(self, values: Mapping[str, Any]) -> None:
        others = dict(values)
        if (stats := others.pop("norm_stats", None)) is not None:
            mean, std = (float(value) for value in stats)
            if not (math.isfinite(mean) and 0 < std < math.inf):
                raise UserError(f"M2D's norm_stats must be a mean and a positive standard deviation, not {mean}, {std}")
            self.settings["norm_stats"] = [mean, std]
            self.norm.copy_(torch.tensor([mean, std]))
        super().switch(others)

    def log_mel(self, waveform: Tensor, generator: torch.Generator | None) -> Tensor:
        frames = framed(waveform, length=400, centred=True)
        if self.half_precision:
            power = halved(halved(self.banks) @ halved(self.half_lines(frames)).transpose(1, 2))
            logarithm = halved(power + FLOOR).log_()
        else:
            power = mel_power(frames, self.banks, self.bands, self.window.mul)
            logarithm = power.add_(FLOOR).log_()
        mean, std = self.norm
        return logarithm.sub_(mean).div_(std)

    def half_lines(self, frames: Float[Tensor, "batch frames 400"]) -> Float[Tensor, "batch frames 201"]:
        """Power spectrum of frames by products with windowed cosines and sines, rounded to float16."""
        time = torch.arange(400, dtype=torch.float64)
        angle = 2 * math.pi / 400 * time[:, None] * time[:201]
        window = self.window.double().cpu()[:, None]
        waves = torch.cat((angle.cos() * window, angle.sin() * window), dim=1).float().to(frames.device)
        real, imaginary = halved(halved(frames) @ halved(waves)).chunk(2, dim=-1)
        return real.square() + imaginary.square()


def kaldi_banks(low: float, high: float, *, bins: int = 128, n_fft: int = 512) -> Float[Tensor, "bins half"]:
    """Make triangular filters of equal width on Kaldi's mel scale; the Nyquist line has no weight, as in Kaldi."""
    banks, _ = torchaudio.compliance.kaldi.get_mel_banks(bins, n_fft, float(SAMPLE_RATE), low, high, 100.0, -500.0, 1.0)
    return F.pad(banks, (0, 1))
