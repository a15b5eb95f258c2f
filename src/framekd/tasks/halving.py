"""Successive halving: all learning rates are trained for a share of the epochs, and the better half goes on.

Each goes on from its own state, on the schedule of the whole training. So a rate that reaches the end has been trained
as it would have been alone, and nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framekd.rates import DROPPED

Result = Mapping[str, Any]


def halve(
    rates: Sequence[float], rounds: Sequence[int], epochs: int, judged: Callable[..., Result]
) -> tuple[list[float], list[Result]]:
    """Drop the worse half of the rates, round by round, until one is left or no round is.

    Args:
        rates: those that are tried.
        rounds: epochs after which rates are dropped.
        epochs: of the whole training.
        judged: trains a rate up to the end of `epochs` and gives its result; no value where it diverges.
    Returns:
        The rates to train to the end, in the order of `rates`, and the results of the others.
    """
    left, lost = list(rates), list[Result]()
    for epoch in rounds:
        if len(left) == 1:
            break
        results = {rate: judged(rate, epochs=epoch) for rate in left}
        whole = [rate for rate in left if results[rate]["value"] is not None]
        better = sorted(whole, key=lambda rate: (-results[rate]["value"], rate))[: -(-len(left) // 2)]
        about = {DROPPED: f"after {epoch} of {epochs} epochs"}
        lost += [{**results[rate], **about} if rate in whole else results[rate] for rate in left if rate not in better]
        left = [rate for rate in left if rate in better]
    return left, lost
