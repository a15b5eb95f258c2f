"""MAESTRO 5h as HEAR prepared it: the first 120 s of piano recordings, 88 pitches; onset F-measure at 50 ms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framekd.config import Task, UserError
from framekd.tasks.hear import read_pool, read_vocabulary, scorer
from framekd.tasks.problem import Part, Problem, Run


def load(root: Path, options: Task, *, seeds: Sequence[int]) -> Problem:
    """One run a fold f: tested on fold f, fold f + 1 is left aside (HEAR validates on it), trained on the others.

    Five folds in the real set; `seeds` gives the first run's seed, the fold is added.
    """
    classes = read_vocabulary(root / "labelvocabulary.csv")
    folds = sorted(path.stem for path in root.glob("fold*.json"))
    if len(folds) < 3:
        raise UserError(f"{root}: {len(folds)} files fold00.json, fold01.json, …; at least 3 are needed")
    clips, places, events = read_pool(root, folds, classes)
    runs = []
    for f, fold in enumerate(folds):
        aside = {fold, folds[(f + 1) % len(folds)]}
        train = sorted(i for name in folds if name not in aside for i in places[name])
        parts = (Part("files", np.array(train)),)
        runs.append(Run(fold, seeds[0] + f, parts, Part("files", np.array(places[fold]))))
    return Problem("MAESTRO", classes, {"files": clips}, tuple(runs), "strong", scorer(events, classes, options))
