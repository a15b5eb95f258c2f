"""Learning rates of a task: given or chosen, what led to the choice, and the trainings that are finished."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framekd.config import SEARCH, HeadRecipe, Task
from framekd.files import write_json
from framekd.rates import DROPPED, choice
from framekd.tasks.problem import Problem

Scores = dict[str, Any]
"""Metrics of a run by name, with its learning rate."""


def rates_of(options: Task, mode: str, model: str) -> tuple[list[float], bool]:
    """The learning rates of a mode, and whether they are a grid of which one is chosen."""
    recipe: HeadRecipe = getattr(options, mode)
    if recipe.of(model).learning_rate == SEARCH:
        return list(getattr(options.search, mode)), True
    return [recipe.rate(model)], False


def choice_of(
    problem: Problem, group: Sequence[int], best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]], *, judged: int
) -> dict[str, Any]:
    """What is written of the learning rate of a group of runs, of which `judged` were judged; 0 without a search."""
    runs = [problem.runs[i] for i in group]
    clips = sum(len(part.clips) for part in runs[0].valid)
    of = f"run {runs[0].name}" if judged == 1 else f"mean of {judged} runs"
    how = (
        f"highest value on {clips} validation clip{'s' * (clips != 1)}, {of}; of equal rates the lower"
        if judged
        else "given"
    )
    if lost := dropped(tried):
        how += f"; {lost} of {len(tried)} rates dropped before the end (successive halving)"
    return {"runs": [run.name for run in runs], **choice(best, tried if judged else [], how=how)}


def result_of(rate: float, *, value: float | None = None, diverged: str | None = None) -> dict[str, Any]:
    """What a rate is worth on validation clips: no value where its training diverged."""
    whole = value is not None and math.isfinite(value)
    return {"learning_rate": rate, "value": value if whole else None, "diverged": diverged}


def dropped(tried: Sequence[Mapping[str, Any]]) -> int:
    """How many of the rates that were tried were not trained to the end although they did not diverge."""
    return sum(DROPPED in one for one in tried)


def rate_columns(rate: float, tried: Sequence[Mapping[str, Any]]) -> Scores:
    """The learning rate of a row of the table, among how many it was chosen, and how many were dropped early."""
    lost = dropped(tried)
    return {"learning_rate": f"{rate:g}", "rates_tried": f"{len(tried)}" + (f" ({lost} dropped early)" if lost else "")}


@dataclass(frozen=True)
class Kept:
    """Trainings of a job that are finished, in a folder that outlives an interruption.

    Attributes:
        identity: what they depend on; those of another are not used.
    """

    folder: Path
    identity: str

    def read(self, label: str) -> dict[str, Any] | None:
        """What was written under a label; None if nothing was."""
        path = self.folder / f"{label}.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return content["result"] if content.get("identity") == self.identity else None

    def write(self, label: str, result: Mapping[str, Any]) -> None:
        """Write what a training gave."""
        write_json(self.folder / f"{label}.json", {"identity": self.identity, "result": result})
