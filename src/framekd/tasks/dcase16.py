"""DCASE 2016 Task 2 as HEAR prepared it: 120-s files, 11 office sounds; onset F-measure at 50 ms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framekd.config import Task
from framekd.tasks.hear import read_pool, read_vocabulary, scorer
from framekd.tasks.problem import Part, Problem, Run


def load(root: Path, options: Task, *, seeds: Sequence[int]) -> Problem:
    """Training on train.json, test on test.json (valid.json is not used: the last epoch counts), one run a seed."""
    classes = read_vocabulary(root / "labelvocabulary.csv")
    clips, places, events = read_pool(root, ("train", "valid", "test"), classes)
    train, test = Part("files", np.array(places["train"])), Part("files", np.array(places["test"]))
    runs = tuple(Run(str(seed), seed, (train,), test) for seed in seeds)
    return Problem("DC16-T2", classes, {"files": clips}, runs, "strong", scorer(events, classes, options))
