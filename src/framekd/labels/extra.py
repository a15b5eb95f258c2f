"""Own recordings that join AudioSet Strong's training set: their labels, and classes beside the published ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from framekd.config import UserError
from framekd.labels.classes import ClassList
from framekd.labels.files import StrongLabels, valid_mid
from framekd.labels.tsv import Annotations, read_annotations

PREFIX = "extra/"
"""Begin of the ids of own clips: no clip of AudioSet has it, so that ids never clash."""


CLASH_REMEDY = "write one name if they are the same class, or names that differ by more than spaces and capitals"


def read_extra(path: str | Path) -> Annotations:
    """Read the table of own events (filename, onset, offset, event_label).

    Raises:
        UserError: see :func:`framekd.labels.tsv.read_annotations`; clip labels, which Step 3 cannot use; or a label is
            the id of an AudioSet class instead of a name.
    """
    labels = read_annotations(path)
    if not labels.timed:
        raise UserError(f"{path}: Step 3 needs events with times (filename, onset, offset, event_label)")
    if ids := [name for name in labels.counts() if valid_mid(name)]:
        raise UserError(f"{path}: {ids[0]} is the id of a class; write its name")
    return labels


def find_audio(labels: Annotations, folder: str | Path) -> dict[str, Path]:
    """The recording of each file name: at its name below `folder`, else by its last part alone in all folders below.

    Raises:
        UserError: there is no such folder; recordings are missing or are in several folders, which are counted; a name
            has a brace.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} does not exist or is no folder")
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            by_name[path.name].append(path)
    found: dict[str, Path] = {}
    for name in labels.files:
        options = [root / name] if (root / name).is_file() else by_name[Path(name).name]
        if len(options) == 1:
            found[name] = options[0]
    if wrong := [name for name in labels.files if name not in found]:
        several = by_name[Path(wrong[0]).name]
        why = f"is in {len(several)} folders below {root}" if several else f"is not in {root}"
        rest = f", as {len(wrong) - 1} others are not found" if wrong[1:] else ""
        raise UserError(f"{labels.path}: {wrong[0]} {why}{rest}")
    if braces := [path for path in found.values() if set("{}") & set(str(path))]:
        raise UserError(f"{braces[0]} has a brace in its name, which Snakemake takes for a wildcard; rename it")
    return found


def alike(name: str) -> str:
    """What two class names have in common that differ only in upper and lower case or spaces."""
    return " ".join(name.split()).casefold()


def class_clashes(own: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of class names that are almost equal: an own one, and a known or another own one."""
    first = {alike(name): name for name in known}
    out = []
    for name in sorted(own):
        other = first.setdefault(alike(name), name)
        if other != name:
            out.append((name, other))
    return out


def with_own(classes: ClassList, own: Iterable[str], names: Mapping[str, str], *, source: str | Path) -> ClassList:
    """`classes`, and behind them the own ones that are not among them, sorted by name.

    Args:
        own: names of own classes. A name of AudioSet is that class; another one is its own id.
        names: {mid: name} of all classes of AudioSet.
        source: the table of own labels, for messages.
    Raises:
        UserError: names that are almost equal.
    """
    own = list(own)
    if clashes := class_clashes(own, names.values()):
        raise UserError(f"{source}: {clash(*clashes[0])}; {CLASH_REMEDY}")
    mids = {name: mid for mid, name in names.items()}
    new = [(mids.get(name, name), name) for name in sorted(set(own) - set(classes.names))]
    return ClassList((*classes.mids, *(mid for mid, _ in new)), (*classes.names, *(name for _, name in new)))


def clash(name: str, other: str) -> str:
    """The sentence about a pair of :func:`class_clashes`."""
    return f"the class {name!r} is almost {other!r}"


def joined(first: StrongLabels, own: Annotations, classes: ClassList) -> StrongLabels:
    """The events of AudioSet and own ones (whose file names are clip ids) as one set of labels."""
    mids = dict(zip(classes.names, classes.mids))
    labels = {mid: i for i, mid in enumerate(first.labels)}
    clip, label, onset, offset = [], [], [], []
    for i, name in enumerate(own.files, len(first.clips)):
        for begin, end, event in own.events[name]:
            clip.append(i)
            label.append(labels.setdefault(mids[event], len(labels)))
            onset.append(begin)
            offset.append(end)
    return StrongLabels(
        [*first.clips, *own.files],
        list(labels),
        np.concatenate([first.clip, np.array(clip, np.int32)]),
        np.concatenate([first.label, np.array(label, np.int32)]),
        np.concatenate([first.onset, np.array(onset, np.float64)]),
        np.concatenate([first.offset, np.array(offset, np.float64)]),
    )
