"""The choice among learning rates that were tried, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from framekd.errors import UserError

KEYS = ("learning_rate", "value", "diverged")
DROPPED = "dropped"
"""Key of a result that says when its training was given up for better ones. Others lack it."""


def choose(results: Sequence[Mapping[str, Any]], *, criterion: str, key: str = "grid") -> Mapping[str, Any]:
    """The best of `results`: highest score or lowest loss, of equals the lower rate; no value is the worst.

    Args:
        results: with the keys `learning_rate` and `value`, each.
        criterion: "loss", or the name of a score.
        key: key of the grid in the block `search`, for the message.
    Raises:
        UserError: no result has a value.
    """
    whole = [result for result in results if result["value"] is not None]
    if not whole:
        rates = ", ".join(f"{result['learning_rate']:g}" for result in results)
        raise UserError(
            f"no rate of the search trains without diverging ({rates}); write lower ones into search: {key}"
        )
    sign = 1 if criterion == "loss" else -1
    return min(whole, key=lambda result: (sign * result["value"], result["learning_rate"]))


def choice(best: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, how: str) -> dict[str, Any]:
    """The chosen rate with all that were tried, sorted, as a file shows them. `how` says in words what decided."""
    tried = sorted(results, key=lambda result: result["learning_rate"])
    figures = [{key: result[key] for key in (*KEYS, DROPPED) if key in result} for result in tried]
    return {"learning_rate": best["learning_rate"], "chosen_by": how, "candidates": figures}
