"""The downstream tasks of Table II: DESED, DCASE 2016 Task 2 and MAESTRO, frozen and fine-tuned (Sec. 4)."""

from framekd.tasks.problem import Problem
from framekd.tasks.transfer import MODES, TASKS, candidates_file, load, run

__all__ = ["MODES", "TASKS", "Problem", "candidates_file", "load", "run"]
