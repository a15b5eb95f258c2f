"""Training: one loop for Step 2, teachers, students and downstream models; exact, resumable, on any number of GPUs.

:func:`fit` trains a model in place. Everything random in a run follows from its seed and the step
(:mod:`framekd.train.seeds`), so that a run that was killed and continued ends in the same weights.
"""

from framekd.train.launch import launch
from framekd.train.loop import Fit, fit
from framekd.train.objectives import OBJECTIVES, Objective, validation_loss
from framekd.train.parallel import is_main
from framekd.train.seeds import derive, numpy_generator, torch_generator
from framekd.train.state import STOPPED, Diverged, Stopped

__all__ = [
    "OBJECTIVES",
    "STOPPED",
    "Diverged",
    "Fit",
    "Objective",
    "Stopped",
    "derive",
    "fit",
    "is_main",
    "launch",
    "numpy_generator",
    "torch_generator",
    "validation_loss",
]
