"""Class lists: derived from label files, and the published ones (Sec. 3.1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np

from framekd.config import UserError

PUBLISHED_COUNTS = (447, 416, 407)
"""Number of strong classes of training, of evaluation, and in both."""


@dataclass(frozen=True)
class ClassList:
    """Ordered classes; the index of a class is its row in every array of scores or targets."""

    mids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.mids) != len(self.names):
            raise ValueError(f"a class list needs one name per id, not {len(self.names)} for {len(self.mids)}")
        for what, values in (("ids", self.mids), ("names", self.names)):
            if len(set(values)) != len(values):
                twice = sorted({v for v in values if values.count(v) > 1})
                raise ValueError(f"class {what} occur twice: {', '.join(twice[:5])}")

    @classmethod
    def of(cls, names: Iterable[str]) -> ClassList:
        """A class list whose ids are the names (downstream tasks)."""
        names = tuple(names)
        return cls(names, names)

    def __len__(self) -> int:
        return len(self.mids)

    def __contains__(self, mid: object) -> bool:
        return mid in self._positions

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {mid: i for i, mid in enumerate(self.mids)}

    def index(self, mid: str) -> int:
        """Row of the class with id `mid`; KeyError if it is not in the list."""
        return self._positions[mid]

    def positions(self, mids: Iterable[str]) -> np.ndarray:
        """Rows of `mids`, -1 where a class is not in the list: int32."""
        return np.fromiter((self._positions.get(m, -1) for m in mids), np.int32)

    def select(self, mids: Iterable[str]) -> ClassList:
        """The classes among `mids`, in this list's order."""
        wanted = set(mids)
        keep = [i for i, m in enumerate(self.mids) if m in wanted]
        return ClassList(tuple(self.mids[i] for i in keep), tuple(self.names[i] for i in keep))


def derive_classes(labels: Iterable[str], names: dict[str, str], *, source: str = "labels") -> ClassList:
    """The classes of the mids that occur, sorted by display name as in the authors' lists."""
    found = set(labels)
    unknown = sorted(found - names.keys())
    if unknown:
        raise UserError(f"{source}: no display name for {', '.join(unknown[:5])} in mid_to_display_name.tsv")
    mids = sorted(found, key=lambda m: names[m])
    return ClassList(tuple(mids), tuple(names[m] for m in mids))


def check_classes(
    train: ClassList, evaluated: ClassList, common: ClassList, *, expected: tuple[int, int, int] | None
) -> tuple[ClassList, ClassList, ClassList]:
    """Return the three lists; UserError if they are not as expected (see :func:`strong_classes`)."""
    found = (len(train), len(evaluated), len(common))
    if expected is None:
        return train, evaluated, common
    if tuple(expected) == PUBLISHED_COUNTS:
        for what, derived, known in zip(
            ("training", "evaluation", "common"), (train, evaluated, common), known_strong()
        ):
            lost, new = sorted(set(known.mids) - set(derived.mids)), sorted(set(derived.mids) - set(known.mids))
            if lost or new:
                raise UserError(
                    f"the strong {what} file has {len(derived)} classes where {len(known)} are published "
                    f"(missing: {', '.join(lost[:5]) or 'none'}; unknown: {', '.join(new[:5]) or 'none'}); "
                    "is a label file cut off? For a subset, write audioset: {expected_classes: null}"
                )
    if found != tuple(expected):
        raise UserError(
            f"the strong label files have {found[0]} training, {found[1]} evaluation and {found[2]} common classes, "
            f"where audioset.expected_classes says {list(expected)}; "
            f"write audioset: {{expected_classes: {list(found)}}} or null"
        )
    return train, evaluated, common


def _vocabulary(name: str) -> list[dict[str, str]]:
    text = resources.files("framekd").joinpath("vocabulary", name).read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, row)) for row in rows]


@lru_cache(maxsize=1)
def known_strong() -> tuple[ClassList, ClassList, ClassList]:
    """The published strong classes, without label files: (447 train, 416 eval, 407 common), sorted by display name."""
    rows = _vocabulary("strong_labels.tsv")

    def those(keep) -> ClassList:
        kept = [row for row in rows if keep(row)]
        return ClassList(tuple(row["mid"] for row in kept), tuple(row["name"] for row in kept))

    return (
        those(lambda row: row["train"] == "1"),
        those(lambda row: row["eval"] == "1"),
        those(lambda row: row["train"] == row["eval"] == "1"),
    )


@lru_cache(maxsize=1)
def known_weak() -> ClassList:
    """The 527 published weak classes in their published order, without label files."""
    rows = _vocabulary("weak_labels.tsv")
    return ClassList(tuple(row["mid"] for row in rows), tuple(row["name"] for row in rows))
