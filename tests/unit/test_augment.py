"""Augmentation: values against a slow reference, draws against their distributions."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import framekd.augment as module
from framekd.augment import (
    augment,
    draw_filter,
    draw_mixture,
    draw_shifts,
    draw_time_mask,
    draw_warp,
    filter_gains,
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


# ------------------------------------------------- every operation against a slow reference, with the same decisions


@dataclass(frozen=True)
class Decisions:
    """What one batch of five clips draws; chosen here, not by the code under test."""

    shifts: np.ndarray
    mixup: tuple[np.ndarray, np.ndarray]
    mixstyle: tuple[np.ndarray, np.ndarray]
    mask: tuple[int, int, int]
    bands: tuple[np.ndarray, np.ndarray]
    warp: tuple[int, int]


def decide(bins):
    weights = np.array([[1.0, 0.5, 0.73, 0.91, 0.6], [0.55, 0.8, 1.0, 0.5, 0.97]], np.float32)
    knots = np.linspace(-6, 6, 25).reshape(5, 5)[[3, 1, 4, 0, 2]]
    return Decisions(
        shifts=np.array([0, 1, -302, 126, 999]),
        mixup=(weights[0], np.array([2, 3, 0, 4, 1])),
        mixstyle=(weights[1], np.array([1, 0, 4, 2, 3])),
        mask=(17, 31, 250),
        bands=(np.array([0, 6, 19, 30, bins]), knots),
        warp=(bins // 7, int(0.71 * bins)),
    )


@pytest.fixture
def decided(monkeypatch):
    """Makes `augment` use the given decisions, each in the place where it draws them."""

    def use(decisions):
        draws = {
            "draw_shifts": lambda generator, size, frames, share: decisions.shifts,
            "draw_mixture": lambda generator, size, alpha: {0.2: decisions.mixup, 0.4: decisions.mixstyle}[alpha],
            "draw_time_mask": lambda generator, labels, longest: decisions.mask,
            "draw_filter": lambda generator, size, bins, config: decisions.bands,
            "draw_warp": lambda generator, bins, least: decisions.warp,
        }
        for name, draw in draws.items():
            monkeypatch.setattr(module, name, draw)

    return use


def rolled(values, shift):
    """values [rows, frames] later by `shift` frames; what leaves at one end comes in at the other."""
    frames = values.shape[1]
    return np.stack([values[:, (t - shift) % frames] for t in range(frames)], axis=1)


def restyled(mel, weights, partners):
    """Normalise each bin of each clip over time, then give it a mix of its own statistics and its partner's."""
    size, bins, frames = mel.shape
    mean, deviation = np.zeros((size, bins)), np.zeros((size, bins))
    for i in range(size):
        for f in range(bins):
            mean[i, f] = math.fsum(mel[i, f]) / frames
            deviation[i, f] = math.sqrt(math.fsum((mel[i, f] - mean[i, f]) ** 2) / (frames - 1) + 1e-6)
    out = np.empty_like(mel)
    for i, (w, j) in enumerate(zip(weights, partners)):
        for f in range(bins):
            new_mean = w * mean[i, f] + (1 - w) * mean[j, f]
            new_deviation = w * deviation[i, f] + (1 - w) * deviation[j, f]
            out[i, f] = (mel[i, f] - mean[i, f]) / deviation[i, f] * new_deviation + new_mean
    return out


def decibels(limits, knots, f):
    """Gain of bin `f`: from one knot at the first bin of its band to the next knot at the last."""
    band = max(b for b in range(len(limits) - 1) if limits[b] <= f)
    low, last = limits[band], limits[band + 1] - 1
    return knots[band] + (knots[band + 1] - knots[band]) * (f - low) / (last - low)


def slow(mel, labels, decisions, parts):
    """The operations of `parts` in the order of the authors' training step, clip by clip, in double precision."""
    mel = mel.double().numpy()[:, 0].copy()
    labels = {name: value.double().numpy().copy() for name, value in labels.items()}
    timed = [name for name, value in labels.items() if value.ndim == 3]
    size, bins, frames = mel.shape
    if "frame_shift" in parts:
        for i, shift in enumerate(decisions.shifts.tolist()):
            mel[i] = rolled(mel[i], shift)
            for name in timed:
                labels[name][i] = rolled(labels[name][i], round(shift / 4))
    if "mixup" in parts:
        for values in (mel, *labels.values()):
            before = values.copy()
            for i, (w, j) in enumerate(zip(*decisions.mixup)):
                values[i] = float(w) * before[i] + (1 - float(w)) * before[j]
    if "mixstyle" in parts:
        mel = restyled(mel, *(part.tolist() for part in decisions.mixstyle))
    if "time_mask" in parts:
        start, width, _ = decisions.mask
        for t in range(start, start + width):
            mel[:, :, 4 * t : 4 * (t + 1)] = 0
            for name in timed:
                labels[name][:, :, t] = 0
    if "filter" in parts:
        limits, knots = decisions.bands
        for i in range(size):
            for f in range(bins):
                mel[i, f] *= 10 ** (decibels(limits, knots[i], f) / 20)
    if "freq_warp" in parts:
        start, height = decisions.warp
        crop = torch.from_numpy(mel[:, None, start : start + height])
        mel = F.interpolate(crop, (bins, frames), mode="bicubic", align_corners=True)[:, 0].numpy()
    return mel, labels


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("part", [*FULL, "all"])
def test_values_equal_the_slow_reference(model, part, decided):
    parts = list(FULL) if part == "all" else [part]
    mel, batch = example(SHAPES[model])
    before = mel.clone(), batch.frame_labels.clone()
    decisions = decide(SHAPES[model][0])
    decided(decisions)
    got, labels = augment(mel, batch, Augment(**{name: FULL[name] for name in parts}), generator=generator())
    kinds = {name: getattr(batch, name) for name in ("frame_labels", "clip_labels", "soft_labels")}
    expected, theirs = slow(mel, kinds, decisions, parts)
    assert not np.allclose(expected, mel[:, 0].numpy(), atol=0.1)
    assert got.shape == mel.shape and got.dtype == torch.float32
    np.testing.assert_allclose(got[:, 0].numpy(), expected, atol=2e-5)
    for kind, value in theirs.items():
        np.testing.assert_allclose(getattr(labels, kind).numpy(), value, atol=1e-6, err_msg=kind)
    assert torch.equal(mel, before[0]) and torch.equal(batch.frame_labels, before[1])


def test_the_default_changes_nothing():
    mel, batch = example((64, 1001))
    got, labels = augment(mel, batch, Augment(), generator=generator())
    assert torch.equal(got, mel) and torch.equal(labels.frame_labels, batch.frame_labels)


def test_equal_generators_give_equal_bytes_and_others_differ():
    mel, batch = example((64, 1001))
    first, _ = augment(mel, batch, Augment(**FULL), generator=generator(1))
    again, _ = augment(mel, batch, Augment(**FULL), generator=generator(1))
    other, _ = augment(mel, batch, Augment(**FULL), generator=generator(2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_labels_follow_the_audio_through_a_shift():
    """A burst within one label frame stays within it, whatever the shift."""
    mel = torch.zeros(64, 1, 8, 1000)
    frames = torch.zeros(64, 1, 250)
    mel[..., 400:404], frames[..., 100] = 1.0, 1.0
    got, labels = augment(mel, Labels(frames), Augment(frame_shift=0.125), generator=generator())
    centre = got[:, 0, 0].argmax(-1) + 1.5
    label = labels.frame_labels[:, 0].argmax(-1) * 4 + 1.5
    assert ((centre - label).abs() <= 2).all() and centre.std() > 60


def test_clips_with_frame_labels_mix_only_with_each_other():
    mel, _ = example((64, 100), size=16)
    has = torch.arange(16) % 3 == 0
    frames = torch.where(has[:, None, None], torch.ones(16, 7, 250), torch.zeros(()))
    _, labels = augment(mel, Labels(frames, has_frame_labels=has), Augment(mixup=1.0), generator=generator())
    assert torch.equal(labels.frame_labels, frames)


def test_partners_within_groups_are_a_permutation_and_one_group_changes_nothing():
    order = torch.from_numpy(generator().permutation(50))
    groups = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.4
    partner = within(order, groups)
    assert sorted(partner.tolist()) == list(range(50)) and torch.equal(groups[partner], groups)
    assert torch.equal(within(order, torch.ones(50, dtype=torch.bool)), order)


def test_soft_labels_of_clips_mix_but_do_not_roll():
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


def test_shifts_are_normal():
    shifts = draw_shifts(generator(), 20_000, 1001, 0.125)
    assert abs(shifts.mean()) < 3 and abs(shifts.std() / 125 - 1) < 0.02
    assert stats.kstest(shifts / 125, "norm").statistic < 0.01


@pytest.mark.parametrize("alpha", [0.2, 0.4, 2.0])
def test_weights_are_folded_beta_and_partners_a_permutation(alpha):
    weight, order = draw_mixture(generator(), 20_000, alpha)
    assert weight.min() >= 0.5 and weight.max() <= 1.0
    for x in (0.6, 0.75, 0.9, 0.99):  # the Beta distribution, folded at one half
        expected = stats.beta.cdf(x, alpha, alpha) - stats.beta.cdf(1 - x, alpha, alpha)
        assert abs((weight <= x).mean() - expected) < 0.015
    assert sorted(order.tolist()) == list(range(20_000))


@pytest.mark.parametrize("part", ["mixup", "mixstyle", "filter", "freq_warp"])
def test_batches_are_changed_as_often_as_the_probability_says(part):
    mel, batch = example((32, 40), size=2)
    rng, changed = generator(), 0
    for _ in range(600):
        got, _ = augment(mel, batch, Augment(**{part: 0.3}, mixup_alpha=2.0, mixstyle_alpha=2.0), generator=rng)
        changed += not torch.equal(got, mel)
    # A batch of two has a partner that differs in half of the permutations.
    expected = 0.15 if part in ("mixup", "mixstyle") else 0.3
    assert abs(changed / 600 - expected) < 0.06


def test_filter_bands_and_gains_follow_their_distributions():
    rng, config = generator(), Augment(filter=1.0)
    drawn = [draw_filter(rng, 8, 128, config) for _ in range(1500)]
    for limits, knots in drawn:
        assert limits[0] == 0 and limits[-1] == 128 and np.diff(limits).min() >= 6
        assert knots.shape == (8, len(limits))
    bands = np.bincount([len(limits) - 1 for limits, _ in drawn])
    assert bands[:3].sum() == 0 and (abs(bands[3:] / 1500 - 1 / 3) < 0.05).all() and len(bands) == 6
    every = np.concatenate([knots.ravel() for _, knots in drawn])
    assert stats.kstest(every / 12 + 0.5, "uniform").statistic < 0.01
    inner = np.concatenate([limits[1:-1] for limits, _ in drawn if len(limits) == 4])
    assert abs(inner.mean() - 64) < 2 and inner.min() < 12 and inner.max() > 116


def test_filters_of_few_bins_have_narrower_bands():
    limits, knots = draw_filter(generator(), 4, 10, Augment(filter=1.0))  # five bands of six bins need 30
    gains = filter_gains(limits, knots)
    assert gains.shape == (4, 1, 10, 1) and gains.isfinite().all()


def test_warp_uses_all_heights_and_offsets():
    rng = generator()
    drawn = np.array([draw_warp(rng, 128, 0.6) for _ in range(20_000)])
    start, height = drawn.T
    assert set(height) == set(range(76, 128)) and stats.kstest((height - 76.8) / 51.2, "uniform").statistic < 0.03
    assert start.min() == 0 and (start + height).max() == 128 and (start + height <= 128).all()
    assert abs((start / (128 - height)).mean() - 0.5) < 0.01


def test_the_warp_matrix_of_all_bins_is_the_identity():
    assert torch.allclose(warp_matrix(80, 0, 80), torch.eye(80), atol=1e-6)


def test_time_masks_have_every_width():
    labels = {"frame_labels": torch.zeros(1, 1, 250)}
    rng = generator()
    widths = [draw_time_mask(rng, labels, 0.2) for _ in range(3000)]
    assert {w for _, w, _ in widths} == set(range(12, 51))
    assert all(start >= 0 and start + width <= frames == 250 for start, width, frames in widths)


def test_mixstyle_of_a_clip_with_itself_changes_nothing():
    mel, _ = example((64, 300))
    scale, offset = mixstyle_affine(mel, torch.full((5,), 0.5), torch.arange(5))
    assert torch.allclose(mel * scale + offset, mel, atol=1e-6)
