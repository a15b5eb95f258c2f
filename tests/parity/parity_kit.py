"""Generated weights and waveforms, the stored arrays, and the rule of agreement with them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"
THEIRS = {"ATST-F": "ATST-F", "BEATs": "BEATs", "fPaSST": "fpasst", "M2D": "M2D", "ASiT": "ASIT"}
META = json.loads((FIXTURES / "meta.json").read_text())
CONSTANTS = (
    "mel_transform.spectrogram.window",
    "mel_transform.mel_scale.fb",
    "backbone.norm_stats",
    "to_spec.mel_basis",
    "to_spec.stft.wsin",
    "to_spec.stft.wcos",
    "to_spec.stft.window_mask",
)


def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"parity_{THEIRS[name]}.npz") as arrays:
        return dict(arrays)


def assert_agrees(label: str, got: np.ndarray | torch.Tensor, want: np.ndarray, tolerance: float) -> None:
    """99.5 % of the values are within 4 × tolerance (plus 1e-4 relative), and the others within 40 × tolerance.

    FFTs round differently on different processors, and the logarithm of an almost silent band amplifies this.
    """
    got = np.asarray(got)
    assert got.shape == want.shape, f"{label}: shape {got.shape}, stored {want.shape}"
    assert np.isfinite(got).all(), f"{label}: non-finite values"
    error = np.maximum(np.abs(got - want) - 1e-4 * np.abs(want), 0)
    usual, most = np.quantile(error, 0.995), error.max()
    assert usual <= 4 * tolerance and most <= 40 * tolerance, f"{label}: 99.5 % {usual:.1e}, maximum {most:.1e}"


def key_table(name: str, *, teacher: bool) -> dict[str, tuple[int, ...]]:
    """The authors' parameter names and shapes, constants included."""
    table = {}
    for line in (FIXTURES / f"state_dict_{THEIRS[name]}.tsv").read_text().splitlines()[1:]:
        key, of_teacher, of_student, *_ = line.split("\t")
        shape = of_teacher if teacher else of_student
        if shape != "-":
            table[key] = () if shape == "scalar" else tuple(int(n) for n in shape.split("x"))
    return table


def depth_table(name: str) -> dict[str, int]:
    lines = (FIXTURES / f"depth_groups_{THEIRS[name]}.tsv").read_text().splitlines()[1:]
    return {key: int(group) for key, group, _ in (line.split("\t") for line in lines)}


def offset_and_scale(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a weight; the first matching rule applies."""
    if key.endswith(("parametrizations.weight.original0", "grep_a")):
        return 1.0, 0.02
    if len(shape) <= 1:
        return (1.0 if key.endswith(".weight") else 0.0), 0.02
    for scale, ends in (
        (0.5, "relative_attention_bias.weight"),
        (0.06, ("qkv.weight", "q_proj.weight", "k_proj.weight")),
        (0.1, "grep_linear.weight"),
    ):
        if key.endswith(ends):
            return 0.0, scale
    if "conv_in_" in key:
        return 0.0, 0.25
    if "pos_embed" in key or key.endswith(("cls_token", "dist_token")):
        return 0.0, 0.2
    return 0.0, 0.02


def drawn(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw the weight of this name from a generator seeded by the name; all layers of BEATs share layer 0's table."""
    if ".relative_attention_bias." in key:
        start, _, rest = key.partition(".layers.")
        key = f"{start}.layers.0.{rest.split('.', 1)[1]}"
    offset, scale = offset_and_scale(key, shape)
    seed = zlib.crc32(f"{META['weight_seed']}:{key}".encode())
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.asarray(np.float32(offset) + np.float32(scale) * noise, dtype=np.float32))


def weights(keys: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: drawn(key, shape) for key, shape in keys.items() if not key.endswith(CONSTANTS)}


def wave(item: int, seconds: int) -> np.ndarray:
    """Chirps, noise and harmonic tones over a noise floor with digital silence, as 16-bit samples.

    Item 1 is quiet and has a DC offset. The order of the draws determines the waveform.
    """
    n = seconds * 16_000
    rng = np.random.Generator(np.random.PCG64(META["wave_seed"] * 1000 + item * 10 + seconds))
    time = np.arange(n) / 16_000
    x = np.zeros(n)
    for _ in range(round(0.8 * seconds)):
        onset, length = rng.uniform(0, 0.9 * seconds), rng.uniform(0.2, 0.35 * seconds)
        level, kind = rng.uniform(0.05, 0.4), rng.integers(0, 3)
        low, high = rng.uniform(80.0, 3000.0), rng.uniform(80.0, 7500.0)
        start, stop = int(onset * 16_000), int(min(onset + length, seconds) * 16_000)
        m = stop - start
        tau = time[:m]
        shape = np.sin(np.pi * (np.arange(m) + 0.5) / m) ** 0.5
        if kind == 0:
            sound = np.sin(2 * np.pi * (low * tau + 0.5 * (high - low) * tau * tau / (m / 16_000)))
        elif kind == 1:
            sound = rng.standard_normal(m) * 0.5
        else:
            tones = (np.sin(2 * np.pi * low * h * tau) / h for h in range(1, 6) if low * h < 7900)
            sound = sum(tones) * (0.6 + 0.4 * np.sin(2 * np.pi * 6.0 * tau))
        x[start:stop] += level * shape * sound
    x += 1e-3 * rng.standard_normal(n)
    start = int(0.45 * n)
    x[start : start + int(0.08 * n)] = 0.0
    if item == 1:
        x = 0.05 * x + 0.01
    return np.clip(np.rint(x * 32768.0), -32768, 32767).astype("<i2")


def waveform(item: int, seconds: int) -> torch.Tensor:
    return torch.from_numpy(wave(item, seconds).astype(np.float32) / 32768.0)[None]
