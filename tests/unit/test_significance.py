"""ASO against deepsig; the enumeration against all draws; honest levels and seeds."""

import itertools
import random
import warnings

import numpy as np
import pytest
from deepsig import aso as deepsig_aso
from deepsig.aso import compute_violation_ratio

from framekd.significance import _spread_drawn, _spread_exact, _violation, aso, coarseness, compare

A, B = [0.463, 0.467, 0.459], [0.461, 0.456, 0.457]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("n", "m"), [(3, 3), (4, 4), (3, 5), (7, 2), (1, 3), (20, 17)])
def test_violation_ratio_is_deepsigs(n, m):
    rng = np.random.default_rng(n * m)
    for decimals in (1, 6):
        for _ in range(20):
            a, b = rng.normal(size=n).round(decimals), rng.normal(size=m).round(decimals)
            found = _violation(np.sort(a)[None], np.sort(b)[None])[0]
            assert found == pytest.approx(compute_violation_ratio(a, b, dt=0.005), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_enumeration_is_all_draws():
    a, b = np.sort(A[:2]), np.sort(B)
    ratios = [
        compute_violation_ratio(np.array(x), np.array(y), dt=0.005)
        for x in itertools.product(a, repeat=2)
        for y in itertools.product(b, repeat=3)
    ]
    spread, count = _spread_exact(a, b)
    assert count == 108 == len(ratios)
    assert spread == pytest.approx(np.std(ratios), abs=1e-12)
    assert _spread_drawn(a, b, 0, 20_000) == pytest.approx(spread, abs=0.01)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_deepsig_within_its_own_noise():
    result = compare(A, B, comparisons=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = np.random.get_state()
        corrected = deepsig_aso(A, B, num_comparisons=5, num_bootstrap_iterations=400, seed=1, show_progress=False)
        bonferroni = deepsig_aso(A, B, confidence_level=0.99, num_bootstrap_iterations=400, seed=1, show_progress=False)
        np.random.set_state(state)
    assert result.eps_min == pytest.approx(bonferroni, abs=0.04)
    assert result.eps_min_deepsig == pytest.approx(corrected, abs=0.04)
    assert result.level == pytest.approx(0.99) and result.level_deepsig == pytest.approx(0.96)
    assert result.eps_min_deepsig < result.eps_min
    # this very case is significant at 0.96 only
    assert result.eps_min_deepsig < 0.2 < result.eps_min and not result.significant


def test_sets_that_do_not_overlap_give_zero_and_the_other_way_one():
    high, low = [0.50, 0.51, 0.52], [0.47, 0.48, 0.49]
    assert aso(high, low) == 0 and compare(high, low).significant
    assert aso(low, high) == pytest.approx(1, abs=0.01) and not compare(low, high).significant
    assert aso(high, high) > 0.5


def test_nothing_random_with_few_seeds_and_nothing_global_ever():
    numpy_before, python_before = np.random.get_state()[1].copy(), random.getstate()
    assert aso(A, B, seed=1) == aso(A, B, seed=2)
    assert compare(A, B).exact and compare(A, B).resamples == 729
    many = np.random.default_rng(0).normal(size=(2, 12))
    first, second = (compare(many[0], many[1], seed=seed) for seed in (1, 2))
    assert not first.exact and first.resamples == 1000
    assert first == compare(many[0], many[1], seed=1)
    assert (np.random.get_state()[1] == numpy_before).all() and random.getstate() == python_before
    assert first.eps_min != second.eps_min


def test_neighbouring_seeds_share_no_draws():
    a, b = np.sort(np.random.default_rng(0).normal(size=(2, 12)), axis=1)
    spreads = [_spread_drawn(a, b, seed, 50) for seed in range(40)]
    # with 49 of 50 draws in common, neighbours would differ far less than strangers
    near, far = np.abs(np.diff(spreads)).mean(), np.abs(np.subtract(spreads[20:], spreads[:20])).mean()
    assert near > 0.4 * far


def test_more_comparisons_are_stricter():
    values = [aso(A, B, comparisons=n) for n in (1, 2, 5, 20)]
    assert values == sorted(values) and values[0] < values[-1]


def test_coarseness_is_stated():
    assert "7 %" in coarseness(3, 3) and "37 %" in compare(A, B).note
    assert "4 seeds" in coarseness(4, 7) and coarseness(20, 12) == ""
    assert compare(A, B).to_dict()["n_a"] == 3


def test_the_stated_coarseness_is_true():
    rng, found = np.random.default_rng(0), {}
    for gap in (0.0, 1.0, 2.0):
        calls = [compare(rng.normal(gap, 1, 3), rng.normal(0, 1, 3)).significant for _ in range(600)]
        found[gap] = np.mean(calls)
    assert found[0.0] == pytest.approx(0.07, abs=0.04)
    assert found[1.0] == pytest.approx(0.37, abs=0.08)
    assert found[2.0] == pytest.approx(0.79, abs=0.08)


@pytest.mark.parametrize(
    ("a", "b", "options"),
    [
        ([], [1.0], {}),
        ([1.0, float("nan")], [1.0], {}),
        ([1.0], [2.0], {"comparisons": 0}),
        ([1.0], [2.0], {"alpha": 0.0}),
        (np.arange(20.0), np.arange(20.0), {"exact": True}),
    ],
)
def test_refusals(a, b, options):
    with pytest.raises(ValueError):
        compare(a, b, **options)
