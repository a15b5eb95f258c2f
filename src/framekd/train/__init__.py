"""Training: one loop for Step 2, teachers, students and downstream models; exact, resumable, on any number of GPUs.

:func:`fit` trains a model in place. Everything random in a run is derived from its seed and the step
(:mod:`framekd.train.seeds`), so that a run that was killed and continued ends in the same weights.
"""

from framekd.train.loop import Fit, RunOptions, fit
from framekd.train.objectives import Objective, validation_loss
from framekd.train.parallel import is_main, launch
from framekd.train.seeds import derive, numpy_generator, torch_generator
from framekd.train.state import STOPPED, Diverged, Stopped
from framekd.train.watch import Validation, WatchedClips

__all__ = [
    "STOPPED",
    "Diverged",
    "Fit",
    "Objective",
    "RunOptions",
    "Stopped",
    "Validation",
    "WatchedClips",
    "derive",
    "fit",
    "is_main",
    "launch",
    "numpy_generator",
    "torch_generator",
    "validation_loss",
]
