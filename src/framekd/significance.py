"""Almost stochastic order (ASO): is one set of scores better than another, beyond the spread over seeds?

Definition: Dror et al., ACL 2019; values as in deepsig. eps_min is an upper bound (at a confidence level) on the
violation of "A is better than B": 0 never, 0.5 both equal, 1 always. The paper calls A significantly better if
eps_min < 0.2, with alpha = 0.05 and a Bonferroni correction for 5 comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from math import comb, factorial
from typing import Any

import numpy as np

THRESHOLD = 0.2
_STEP = 0.005  # step of the integral over quantiles, deepsig's default
_MOST_PAIRS = 20_000  # enumerate up to this many pairs of resamples (5 against 5), else draw


@dataclass(frozen=True)
class AsoResult:
    """Result of one comparison of A with B.

    Attributes:
        eps_min: bound at the Bonferroni level 1 - alpha / comparisons.
        significant: eps_min < threshold.
        eps_min_deepsig: bound at deepsig's own corrected level; for 5 comparisons 0.96 instead of 0.99.
        violation: violation ratio of the scores themselves.
        exact: all resamples were enumerated, without random numbers.
        note: how coarse the test is with so few seeds.
    """

    eps_min: float
    significant: bool
    eps_min_deepsig: float
    violation: float
    alpha: float
    comparisons: int
    level: float
    level_deepsig: float
    threshold: float
    n_a: int
    n_b: int
    exact: bool
    resamples: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def coarseness(n_a: int, n_b: int) -> str:
    """A sentence on how coarse the test is with so few seeds; empty from 10 seeds on."""
    few = min(n_a, n_b)
    if few >= 10:
        return ""
    if few == 3:
        return (
            "With 3 seeds the test is coarse: it calls about 7 % of comparisons significant where there is no gap, "
            "37 % at a gap of one standard deviation of the seeds and 79 % at two; any two triples that do not overlap "
            "give 0."
        )
    return f"With {few} seeds the test is coarse: sets that do not overlap always give 0, however small the gap."


def _violation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Violation ratios of sorted rows a [resamples, n] against b [resamples, m] (Dror et al., equations 4 and 5).

    The integral is deepsig's sum over t = 0.005 … 0.995; like deepsig, it leaves the first point out of the numerator.
    Two rows with equal quantiles give 0.5.
    """
    t = np.arange(_STEP, 1, _STEP)
    place_a = np.clip(np.ceil(a.shape[1] * t).astype(int) - 1, 0, a.shape[1] - 1)
    place_b = np.clip(np.ceil(b.shape[1] * t).astype(int) - 1, 0, b.shape[1] - 1)
    # The quantile functions are steps: count points with the same pair of ranks instead of repeating them.
    pairs, counts = np.unique(np.stack((place_a, place_b)), axis=1, return_counts=True)
    first = np.flatnonzero((pairs[0] == place_a[0]) & (pairs[1] == place_b[0]))
    numerator_counts = counts.copy()
    numerator_counts[first] -= 1
    diff = b[:, pairs[1]] - a[:, pairs[0]]
    squared = diff**2
    total = squared @ counts.astype(float)
    violated = np.where(diff > 0, squared, 0.0) @ numerator_counts.astype(float)
    return np.where(total > 0, violated / np.where(total > 0, total, 1.0), 0.5)


def _multisets(n: int) -> tuple[np.ndarray, np.ndarray]:
    """All resamples of n items as sorted indices [sets, n], and the number of the n**n draws that give each."""
    places = np.array(list(combinations_with_replacement(range(n), n)))
    weights = [factorial(n) // int(np.prod([factorial(int(c)) for c in np.bincount(row)])) for row in places]
    return places, np.array(weights, dtype=float)


def _spread_exact(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    """Standard deviation of the violation ratio over all n**n * m**m resamples, and their number."""
    (rows_a, weight_a), (rows_b, weight_b) = _multisets(len(a)), _multisets(len(b))
    values = _violation(np.repeat(a[rows_a], len(rows_b), axis=0), np.tile(b[rows_b], (len(rows_a), 1)))
    weights = np.outer(weight_a, weight_b).ravel()
    mean = np.average(values, weights=weights)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weights))), len(a) ** len(a) * len(b) ** len(b)


def _spread_drawn(a: np.ndarray, b: np.ndarray, seed: int, resamples: int) -> float:
    """Standard deviation over drawn resamples, from its own generator: different seeds share no draws."""
    rng = np.random.default_rng(seed)
    rows_a = np.sort(rng.integers(0, len(a), (resamples, len(a))), axis=1)
    rows_b = np.sort(rng.integers(0, len(b), (resamples, len(b))), axis=1)
    return float(np.std(_violation(a[rows_a], b[rows_b])))


def _scores(values: Sequence[float], name: str) -> np.ndarray:
    array = np.sort(np.asarray(values, dtype=float).ravel())
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"Scores {name} must be one or more finite numbers, but are {list(values)}.")
    return array


def compare(
    a: Sequence[float],
    b: Sequence[float],
    *,
    comparisons: int = 5,
    alpha: float = 0.05,
    threshold: float = THRESHOLD,
    seed: int = 0,
    resamples: int = 1000,
    exact: bool | None = None,
) -> AsoResult:
    """Test whether A is better than B (higher scores are better).

    Args:
        a, b: a score per seed; the numbers of seeds may differ.
        comparisons: number of tests made together, for the Bonferroni level 1 - alpha / comparisons.
        alpha: significance level of all tests together.
        threshold: A is significantly better if eps_min is below it.
        seed, resamples: of the drawn resamples. Global generators are not used.
        exact: True: enumerate all resamples; False: draw; None: enumerate up to 5 against 5.
    Raises:
        ValueError: scores are empty or not finite, or an argument is out of range.
    """
    from scipy.stats import norm

    if comparisons < 1 or not 0 < alpha < 1 or resamples < 1:
        raise ValueError(
            f"comparisons and resamples must be at least 1 and alpha between 0 and 1, but they are {comparisons}, "
            f"{resamples} and {alpha}."
        )
    x, y = _scores(a, "a"), _scores(b, "b")
    feasible = comb(2 * len(x) - 1, len(x)) * comb(2 * len(y) - 1, len(y)) <= _MOST_PAIRS
    if exact and not feasible:
        raise ValueError(f"{len(x)} against {len(y)} scores are too many to enumerate; set exact=False.")
    enumerate_all = feasible if exact is None else exact
    violation = float(_violation(x[None], y[None])[0])
    spread, used = _spread_exact(x, y) if enumerate_all else (_spread_drawn(x, y, seed, resamples), resamples)
    level = 1 - alpha / comparisons
    level_deepsig = 1 - alpha + alpha / comparisons if comparisons > 1 else 1 - alpha

    def bound(confidence: float) -> float:
        return float(np.clip(violation - spread * norm.ppf(1 - confidence), 0, 1))

    eps_min = bound(level)
    return AsoResult(
        eps_min=eps_min,
        significant=eps_min < threshold,
        eps_min_deepsig=bound(level_deepsig),
        violation=violation,
        alpha=alpha,
        comparisons=comparisons,
        level=level,
        level_deepsig=level_deepsig,
        threshold=threshold,
        n_a=len(x),
        n_b=len(y),
        exact=bool(enumerate_all),
        resamples=used,
        note=coarseness(len(x), len(y)),
    )


def aso(
    a: Sequence[float], b: Sequence[float], *, comparisons: int = 5, alpha: float = 0.05, seed: int = 0, **options: Any
) -> float:
    """eps_min of "A is better than B" at the Bonferroni level 1 - alpha / comparisons. Arguments as for `compare`.

    The paper calls A significantly better below 0.2. `seed` matters only beyond 5 against 5 scores.
    """
    return compare(a, b, comparisons=comparisons, alpha=alpha, seed=seed, **options).eps_min
