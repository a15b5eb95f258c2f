"""Each augmentation against a slow reference that loops over clips, bins and frames as its definition reads."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from framekd.augment import (
    augment,
    draw_filter,
    draw_mixture,
    draw_shifts,
    draw_time_mask,
    draw_warp,
    mixstyle_affine,
    warp_matrix,
    within,
)
from framekd.config import Augment

SHAPES = {"ATST-F": (64, 1001), "BEATs": (128, 998), "fPaSST": (128, 1000), "M2D": (80, 1001), "ASiT": (128, 998)}
FULL = dict(frame_shift=0.125, mixup=1.0, mixstyle=1.0, filter=1.0, freq_warp=1.0, time_mask=0.2)


@dataclass(frozen=True)
class Labels:
    frame_labels: torch.Tensor | None = None
    clip_labels: torch.Tensor | None = None
    soft_labels: torch.Tensor | None = None
    has_frame_labels: torch.Tensor | None = None


def example(shape, *, size=5, classes=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    mel = torch.randn(size, 1, *shape, generator=draw) * 0.7 - 0.3
    frames = (torch.rand(size, classes, 250, generator=draw) < 0.1).float()
    soft = torch.rand(size, classes, 250, generator=draw)
    return mel, Labels(frames, frames.amax(-1), soft)


def generator(seed=3):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- the slow reference, one clip at a time


def slow(mel, batch, config, rng):
    """The whole chain by definition, from the same draws in the same order."""
    size, _, bins, frames = mel.shape
    mel = mel.double().numpy()[:, 0].copy()
    kinds = [k for k in ("frame_labels", "clip_labels", "soft_labels") if getattr(batch, k) is not None]
    labels = {k: getattr(batch, k).double().numpy().copy() for k in kinds}
    if config.frame_shift > 0:
        for i, shift in enumerate(int(s) for s in rng.normal(0, int(frames * config.frame_shift), size)):
            mel[i] = np.roll(mel[i], shift, axis=-1)
            for k in kinds:
                if labels[k].ndim == 3:
                    labels[k][i] = np.roll(labels[k][i], round(shift / 4), axis=-1)
    if config.mixup > 0 and rng.random() < config.mixup:
        c = rng.beta(config.mixup_alpha, config.mixup_alpha, size)
        perm = rng.permutation(size)
        mel_0, labels_0 = mel.copy(), {k: v.copy() for k, v in labels.items()}
        for i in range(size):
            w = max(c[i], 1 - c[i])
            mel[i] = w * mel_0[i] + (1 - w) * mel_0[perm[i]]
            for k in kinds:
                labels[k][i] = w * labels_0[k][i] + (1 - w) * labels_0[k][perm[i]]
    if config.mixstyle > 0 and rng.random() < config.mixstyle:
        c = rng.beta(config.mixstyle_alpha, config.mixstyle_alpha, size)
        perm = rng.permutation(size)
        mean = mel.mean(-1, keepdims=True)
        std = np.sqrt(mel.var(-1, ddof=1, keepdims=True) + 1e-6)
        plain = (mel - mean) / std
        for i in range(size):
            w = max(c[i], 1 - c[i])
            mel[i] = plain[i] * (w * std[i] + (1 - w) * std[perm[i]]) + w * mean[i] + (1 - w) * mean[perm[i]]
    if config.time_mask > 0:
        widest = int(config.time_mask * 250)
        width = int(rng.integers(int(0.05 * 250), widest + 1))
        start = int(rng.integers(0, 250 - width + 1))
        mel[:, :, 4 * start : 4 * (start + width)] = 0
        for k in kinds:
            if labels[k].ndim == 3:
                labels[k][:, :, start : start + width] = 0
    if config.filter > 0 and rng.random() < config.filter:
        bands = int(rng.integers(config.filter_bands[0], config.filter_bands[1] + 1))
        width = config.filter_min_bins
        inner = np.sort(rng.integers(0, bins - bands * width + 1, bands - 1)) + np.arange(1, bands) * width
        limits = [0, *inner, bins]
        knots = rng.uniform(-config.filter_db, config.filter_db, (size, bands + 1))
        for i in range(size):
            for b in range(bands):
                low, high = limits[b], limits[b + 1]
                assert high - low >= width
                mel[i, low:high] *= 10 ** (np.linspace(knots[i, b], knots[i, b + 1], high - low)[:, None] / 20)
    if config.freq_warp > 0 and rng.random() < config.freq_warp:
        height = int(rng.uniform(config.freq_warp_min, 1.0) * bins)
        start = int(rng.integers(0, bins - height + 1))
        crop = torch.from_numpy(mel[:, None, start : start + height])
        mel = F.interpolate(crop, (bins, frames), mode="bicubic", align_corners=True)[:, 0].numpy()
    return mel, labels


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("part", [*FULL, "all"])
def test_values_equal_the_slow_reference(model, part):
    config = Augment(**(FULL if part == "all" else {part: FULL[part]}))
    mel, batch = example(SHAPES[model])
    before = mel.clone(), batch.frame_labels.clone()
    got, labels = augment(mel, batch, config, generator=generator())
    expected, theirs = slow(mel, batch, config, generator())
    assert got.shape == mel.shape and got.dtype == torch.float32
    np.testing.assert_allclose(got[:, 0].numpy(), expected, atol=2e-5)
    for kind, value in theirs.items():
        np.testing.assert_allclose(getattr(labels, kind).numpy(), value, atol=1e-6, err_msg=kind)
    assert torch.equal(mel, before[0]) and torch.equal(batch.frame_labels, before[1])


def test_nothing_asked_for_changes_nothing():
    mel, batch = example((64, 1001))
    got, labels = augment(mel, batch, Augment(), generator=generator())
    assert torch.equal(got, mel) and torch.equal(labels.frame_labels, batch.frame_labels)


def test_same_generator_same_bytes_and_another_differs():
    mel, batch = example((64, 1001))
    first, _ = augment(mel, batch, Augment(**FULL), generator=generator(1))
    again, _ = augment(mel, batch, Augment(**FULL), generator=generator(1))
    other, _ = augment(mel, batch, Augment(**FULL), generator=generator(2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_labels_follow_the_audio_through_a_shift():
    """A burst that one label frame marks lies under that label wherever the clip was rolled to."""
    mel = torch.zeros(64, 1, 8, 1000)
    frames = torch.zeros(64, 1, 250)
    mel[..., 400:404], frames[..., 100] = 1.0, 1.0
    got, labels = augment(mel, Labels(frames), Augment(frame_shift=0.125), generator=generator())
    centre = got[:, 0, 0].argmax(-1) + 1.5
    label = labels.frame_labels[:, 0].argmax(-1) * 4 + 1.5
    assert ((centre - label).abs() <= 2).all() and centre.std() > 60


def test_mixed_batches_mix_within_their_kind():
    """Clips without frame labels never dilute those with them."""
    mel, _ = example((64, 100), size=16)
    has = torch.arange(16) % 3 == 0
    frames = torch.where(has[:, None, None], torch.ones(16, 7, 250), torch.zeros(()))
    _, labels = augment(mel, Labels(frames, has_frame_labels=has), Augment(mixup=1.0), generator=generator())
    assert torch.equal(labels.frame_labels, frames)


def test_within_is_a_permutation_of_each_group_and_identity_for_one():
    order = torch.from_numpy(generator().permutation(50))
    groups = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.4
    partner = within(order, groups)
    assert sorted(partner.tolist()) == list(range(50)) and torch.equal(groups[partner], groups)
    assert torch.equal(within(order, torch.ones(50, dtype=torch.bool)), order)


def test_clip_soft_labels_mix_but_do_not_roll():
    mel, _ = example((64, 1001))
    soft = torch.rand(5, 9)
    _, shifted = augment(mel, Labels(soft_labels=soft), Augment(frame_shift=0.125), generator=generator())
    _, mixed = augment(mel, Labels(soft_labels=soft), Augment(mixup=1.0), generator=generator())
    assert torch.equal(shifted.soft_labels, soft) and not torch.equal(mixed.soft_labels, soft)


def test_missing_soft_labels_stay_missing():
    mel, batch = example((64, 1001))
    soft = batch.soft_labels.clone()
    soft[2] = torch.nan
    labels = Labels(batch.frame_labels, soft_labels=soft)
    _, out = augment(mel, labels, Augment(frame_shift=0.1, mixup=1.0), generator=generator(1))
    assert out.soft_labels[2].isnan().all() and not out.frame_labels.isnan().any()


# ---------------------------------------------------------------------------------------------- distributions


def test_shift_distribution():
    shifts = draw_shifts(generator(), 20_000, 1001, 0.125)
    assert abs(shifts.mean()) < 3 and abs(shifts.std() / 125 - 1) < 0.02
    assert stats.kstest(shifts / 125, "norm").statistic < 0.01


@pytest.mark.parametrize("alpha", [0.2, 0.4, 2.0])
def test_mixture_distribution(alpha):
    weight, order = draw_mixture(generator(), 20_000, alpha)
    assert weight.min() >= 0.5 and weight.max() <= 1.0
    for x in (0.6, 0.75, 0.9, 0.99):  # the Beta distribution, folded at one half
        expected = stats.beta.cdf(x, alpha, alpha) - stats.beta.cdf(1 - x, alpha, alpha)
        assert abs((weight <= x).mean() - expected) < 0.015
    assert sorted(order.tolist()) == list(range(20_000))


def test_batch_decisions_come_as_often_as_asked_for():
    mel, batch = example((16, 40), size=2)
    rng, changed = generator(), 0
    for _ in range(600):
        got, _ = augment(mel, batch, Augment(freq_warp=0.3), generator=rng)
        changed += not torch.equal(got, mel)
    assert abs(changed / 600 - 0.3) < 0.06


def test_filter_gains_lie_within_their_limits_and_use_every_number_of_bands():
    rng, config = generator(), Augment(filter=1.0)
    gains = torch.cat([draw_filter(rng, 64, 128, config) for _ in range(200)])[:, 0, :, 0]
    decibel = 20 * gains.log10()
    assert decibel.abs().max() <= 6.0001 and decibel.abs().max() > 5.9 and abs(float(decibel.mean())) < 0.1
    assert stats.kstest(decibel[:, 0].numpy() / 12 + 0.5, "uniform").statistic < 0.02
    narrow = draw_filter(rng, 4, 10, config)  # fewer bins than five bands of six need
    assert narrow.shape == (4, 1, 10, 1) and narrow.isfinite().all()


def test_warp_uses_all_offsets_and_heights():
    rng = generator()
    tops, heights = [], []
    for _ in range(500):
        matrix = draw_warp(rng, 128, 0.6)
        used = matrix.abs().sum(0).nonzero().ravel()
        tops.append(int(used[0]))
        heights.append(int(used[-1] - used[0] + 1))
    assert min(heights) >= 76 and max(heights) <= 128 and np.std(heights) > 10 and min(tops) == 0 and max(tops) > 30


def test_warp_matrix_of_everything_is_the_identity():
    assert torch.allclose(warp_matrix(80, 0, 80), torch.eye(80), atol=1e-6)


def test_time_mask_widths():
    labels = {"frame_labels": torch.zeros(1, 1, 250)}
    rng = generator()
    widths = [draw_time_mask(rng, labels, 0.2) for _ in range(3000)]
    assert {w for _, w, _ in widths} == set(range(12, 51))
    assert all(start >= 0 and start + width <= frames == 250 for start, width, frames in widths)


def test_mixstyle_with_oneself_changes_nothing():
    mel, _ = example((64, 300))
    scale, offset = mixstyle_affine(mel, torch.full((5,), 0.5), torch.arange(5))
    assert torch.allclose(mel * scale + offset, mel, atol=1e-6)
