"""What differs between two jobs, number by number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepdiff import DeepDiff

ABSENT = "absent"
SHORT = 60  # characters of a value in print


@dataclass(frozen=True)
class Difference:
    """One number of a job: `key` has dots between its parts. `inert` numbers cannot change a result."""

    key: str
    then: Any
    now: Any
    inert: bool = False

    def __str__(self) -> str:
        note = " (cannot change the result)" if self.inert else ""
        return f"{self.key}: {_short(self.then)} -> {_short(self.now)}{note}"


def _short(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def differences(then: Any, now: Any, *, live: Any = None) -> list[Difference]:
    """What differs between two jobs as plain data, without their code versions.

    Args:
        then: the job that ran, or the first of two.
        now: the job that it is compared with.
        live: the keys of `now` that a result depends on, nested as in `now`; all where it is None.

    Returns:
        One per key, in the order of the keys. A difference that several models share is one, with the key
        ``recipes.{ATST-F,BEATs}.epochs``.
    """
    tree = DeepDiff(
        then,
        now,
        view="tree",
        ignore_numeric_type_changes=True,
        threshold_to_diff_deeper=0,
        exclude_paths=["root['version']"],
    )
    found = []
    for items in tree.values():
        for item in items:
            path = [str(part) for part in item.path(output_format="list")]
            inert = live is not None and not _has(live, path)
            found.append((path, _plain(item.t1), _plain(item.t2), inert))
    return _fold(sorted(found, key=lambda one: one[0]))


def _plain(value: Any) -> Any:
    return ABSENT if repr(value) == "not present" else value


def _has(tree: Any, path: Sequence[str]) -> bool:
    """Whether nested dicts lead down `path`, or up to a value or list that contains the rest of it."""
    for key in path:
        if not isinstance(tree, dict):
            return True
        if key not in tree:
            return not tree  # an empty dict may get any key
        tree = tree[key]
    return True


def _fold(found: list[tuple[list[str], Any, Any, bool]]) -> list[Difference]:
    """Differences that several models share, as one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], tuple[Any, Any, bool]] = {}
    for path, then, now, inert in found:
        by_model = len(path) > 2 and path[0] in ("recipes", "options", "sizes")
        key = (path[0], *path[2:]) if by_model else tuple(path)
        group = (*key, json.dumps([then, now], default=str), str(by_model))
        groups.setdefault(group, []).append(path[1] if by_model else "")
        first.setdefault(group, (then, now, inert))
    out = []
    for group, models in groups.items():
        parts = list(group[:-2])
        if models[0]:
            parts.insert(1, models[0] if len(models) == 1 else "{" + ",".join(models) + "}")
        out.append(Difference(".".join(parts), *first[group]))
    return out
