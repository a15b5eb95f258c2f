"""The architectures' sizes, without torch: what the models read, and what is checked before any job starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from framekd.config.base import UserError

_BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072, "rnn_hidden": 2048}
SIZES: dict[str, dict[str, Any]] = {
    "ATST-F": _BASE,
    "BEATs": {
        **_BASE,
        "patch_dim": 512,
        "pos_kernel": 128,
        "pos_groups": 16,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "layerdrop": 0.05,
    },
    "fPaSST": {**_BASE, "rnn_hidden": 1024, "stem": [16, 32, 64]},
    "M2D": _BASE,
    "ASiT": {**_BASE, "position_grid": "frequency-first"},
    "tiny": {"width": 64, "depth": 2, "heads": 2, "mlp": 256, "rnn_hidden": 32, "kernel": 15},
}
"""Every architecture and its sizes in the paper: width, depth, heads, mlp (hidden units of a block), rnn_hidden, …"""


def unknown_model(name: str, known: Mapping[str, Any] | None = None) -> str:
    """The end of a sentence about a model that does not exist: "did you mean 'BEATs'?" or the list of models."""
    names = list(known or SIZES)
    by_case = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), list(by_case), n=1, cutoff=0.7)
    return f"did you mean {by_case[near[0]]!r}?" if near else f"the models are {', '.join(names)}."


def resolve_sizes(name: str, sizes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge `sizes` into those of an architecture in the paper.

    Without `mlp` or `mlp_ratio`, `mlp` keeps the architecture's ratio to the width.

    Raises:
        UserError: an unknown size, a value of another kind, both `mlp` and `mlp_ratio`, or heads that do not divide
            the width.
    """
    given, defaults = dict(sizes or {}), {"rnn_layers": 2, **SIZES[name]}
    allowed = sorted({*defaults, "mlp_ratio"})
    unknown = sorted(map(str, set(given) - set(allowed)))
    if unknown:
        raise UserError(f"{name} has no size called {unknown[0]!r}; its sizes are {', '.join(allowed)}.")
    if "mlp" in given and "mlp_ratio" in given:
        raise UserError("Give mlp (hidden units) or mlp_ratio (times width), not both.")
    for key, value in given.items():
        if (expected := _kind(value, defaults.get(key, 1.0), ratio=key == "mlp_ratio")) is not None:
            raise UserError(f"{name}: {key} must be {expected}, not {value!r}.")
    ratio = given.pop("mlp_ratio", None)
    resolved = {**defaults, **given}
    if ratio is not None:
        resolved["mlp"] = max(1, round(ratio * resolved["width"]))
    elif "mlp" not in given:
        resolved["mlp"] = defaults["mlp"] * resolved["width"] // defaults["width"]
    if resolved["width"] % resolved["heads"]:
        raise UserError(
            f"{name}: heads ({resolved['heads']}) must divide width ({resolved['width']}); "
            "change one of the two in sizes."
        )
    if resolved["width"] % resolved.get("pos_groups", 1):
        raise UserError(
            f"{name}: pos_groups ({resolved['pos_groups']}) must divide width ({resolved['width']}); "
            "change one of the two in sizes."
        )
    return resolved


def _kind(value: Any, default: Any, *, ratio: bool) -> str | None:
    """What a size has to be, if `value` is something else; None if it fits."""
    whole = type(value) is int and 1 <= value <= 1_000_000
    number = type(value) in (int, float)
    if ratio:
        return None if number and 0 < value <= 1000 else "a positive number"
    if isinstance(default, float):
        return None if number and 0 <= value < 1 else "a number from 0 to below 1"
    if isinstance(default, int):
        return None if whole else "a positive whole number"
    if isinstance(default, list):
        fits = isinstance(value, list | tuple) and len(value) == len(default)
        fits = fits and all(type(part) is int and 1 <= part <= 100_000 for part in value)
        return None if fits else f"{len(default)} positive whole numbers"
    return None if isinstance(value, type(default)) else f"a text such as {default!r}"
