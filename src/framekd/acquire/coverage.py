"""The gate before any training: are there clips enough, and does every class have some?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from framekd import config
from framekd.config import LABEL_FILES, UserError
from framekd.labels import derive_classes, read_display_names, read_strong, read_weak_classes, read_weak_segments
from framekd.manifest import State, coverage, read_manifest, write_atomically


def check_coverage(
    manifests: Iterable[str | Path],
    labels: str | Path | Mapping[str, str | Path],
    audioset: config.AudioSet,
    *,
    table: str | Path | None = None,
) -> dict[str, dict[str, int]]:
    """Clips per split and state; stops with a :class:`UserError` and counts where training would make no sense.

    Refused: a split with fewer clips than audioset.min_clips, and a class of the strong labels without any clip left.
    With `table`, a TSV of (split, class, state, clips) is written first, in either case: rows with an empty class
    count the split's clips by state; rows with a class count its clips that are there.
    """
    entries = [entry for path in manifests for entry in read_manifest(path)]
    counts = coverage(entries)
    there = {e.clip_id for e in entries if e.state is State.OK}
    classes = _classes(labels, there, weak=any(name.startswith("weak") for name in counts))
    if table is not None:
        rows = [f"{split}\t\t{state}\t{n}" for split, states in counts.items() for state, n in states.items()]
        rows += [f"{split}\t{name}\tok\t{n}" for split, found in classes.items() for name, n in found.items()]
        write_atomically(Path(table), ["split\tclass\tstate\tclips", *rows])
    wrong = []
    for split in ("strong_train", "strong_eval", *sorted(counts)):
        states = counts.get(split, {"wanted": 0, "ok": 0})
        if states["ok"] < audioset.min_clips:
            lost = ", ".join(f"{n} {state}" for state, n in states.items() if state not in ("wanted", "ok"))
            wrong.append(f"{split} has {states['ok']} of {states['wanted']} clips ({lost or 'no clips wanted'})")
    for split in ("strong_train", "strong_eval"):
        empty = [name for name, n in classes.get(split, {}).items() if n == 0]
        if empty:
            named = ", ".join(empty[:8]) + (", …" if len(empty) > 8 else "")
            wrong.append(f"{split} has no clip for {len(empty)} of {len(classes[split])} classes ({named})")
    if wrong:
        raise UserError(
            f"too little audio to train on: {'; '.join(dict.fromkeys(wrong))}. Add audioset.folders or audioset.hdf5, "
            "or run the download again; to go on with fewer clips lower audioset.min_clips, and take a class that "
            "cannot be had out of the label files (audioset.labels_dir, with expected_classes: null)"
        )
    return counts


def _classes(labels, there: set[str], *, weak: bool) -> dict[str, dict[str, int]]:
    """Clips that are there per split and class name."""
    paths = {
        name: Path(labels[name]) if isinstance(labels, Mapping) else Path(labels) / file
        for name, file in LABEL_FILES.items()
    }
    names = read_display_names(paths["mid_to_display_name"])
    out: dict[str, dict[str, int]] = {}
    for split, name in (("strong_train", "train_strong"), ("strong_eval", "eval_strong")):
        strong = read_strong(paths[name])
        listed = derive_classes(strong.labels, names, source=str(paths[name]))
        found = np.array([clip in there for clip in strong.clips], bool)[strong.clip]
        pairs = np.unique(np.stack([strong.clip[found], listed.positions(strong.labels)[strong.label[found]]]), axis=1)
        n = np.bincount(pairs[1], minlength=len(listed)) if pairs.size else np.zeros(len(listed), int)
        out[split] = dict(zip(listed.names, n.tolist()))
    if weak:
        listed = read_weak_classes(paths["class_labels"])
        total = np.zeros(len(listed), np.int64)
        for name in ("balanced_train", "unbalanced_train"):
            segments = read_weak_segments(paths[name])
            found = np.repeat([clip in there for clip in segments.clips], np.diff(segments.start))
            rows = listed.positions(segments.labels)[segments.label[found]]
            total += np.bincount(rows[rows >= 0], minlength=len(listed))
        out["weak_train"] = dict(zip(listed.names, total.tolist()))
    return out
