"""In how many parts a batch is computed, so that a step fits into a device's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from framekd.config import TrainRecipe
from framekd.models import FrameModel
from framekd.train.footprint import MARGIN, fitting, footprint
from framekd.train.objectives import Objective
from framekd.units import CLIP_FRAMES


def allocated(device: torch.device) -> int:
    """Bytes of tensors of this process on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def available(device: torch.device, *, beside: int) -> int | None:
    """Bytes of a GPU that are free or this process's, but for those `beside` the training; None on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - beside


def parts_for(
    memory: int, model: Any, loader: Any, recipe: TrainRecipe, objective: Objective, *, processes: int
) -> int:
    """In how many parts a batch fits into `memory` bytes, which is printed; the recipe's number for other models."""
    if not isinstance(model, FrameModel):
        return recipe.accumulate
    frames = getattr(loader, "n_frames", CLIP_FRAMES)
    parts, why = parts_that_fit(model, recipe, objective, memory, frames=frames, processes=processes)
    print(f"memory of the training: {why}", flush=True)
    return parts


def parts_that_fit(
    model: FrameModel, recipe: TrainRecipe, objective: Objective, memory: int, *, frames: int, processes: int = 1
) -> tuple[int, str]:
    """In how many parts a batch has to be computed: the recipe's `accumulate`, or more.

    Args:
        memory: bytes that the training can have.
        processes: how many train together; each computes its share of a batch.
    Returns:
        The number of parts, and a sentence that says why.
    """
    own = recipe.model_copy(update={"batch_size": -(-recipe.batch_size // processes)})
    needed = footprint(model, own, objective, frames=frames).peak
    about = f"counted {needed / 2**30:.1f} GiB for {own.batch_size} clips in {recipe.accumulate} parts"
    about += f", {memory / 2**30:.1f} GiB are free"
    if needed <= MARGIN * memory:
        return recipe.accumulate, about
    found = fitting(model, own, objective, memory, frames=frames)
    if found is None:
        return own.batch_size, f"{about}: clip by clip, which may not fit either"
    return found[0], f"{about}: accumulate: {found[0]} for this training"


def out_of_memory(
    directory: Path, step: int, total: int, batch_size: int, parts: int, device: torch.device, *, saved: bool
) -> str:
    """What to say when the memory of a device was too small, with what helps."""
    more, again = more_parts(batch_size, parts), "start the run again, it continues"
    if more == parts:
        again = f"take a device with more memory and {again}"
    elif saved:
        again = f"{again} with accumulate: {more}"
    else:
        again = f"write recipe: {{accumulate: {more}}} and {again}"
    state = f"saved after step {step} of {total}" if saved else "the last saved state is kept"
    return (
        f"the memory of {device} is too small for batches of {batch_size} clips in {parts} parts; "
        f"{state}: {directory}; {again}"
    )


def device_lost(error: Exception, directory: Path, step: int, total: int, device: torch.device) -> str:
    """What to say when a device failed or vanished."""
    reason = str(error).strip().partition("\n")[0]
    return (
        f"{device} failed after step {step} of {total} ({reason}); the last saved state is kept: {directory}; "
        "start the run again, it continues; if it fails there again, take another device"
    )


def more_parts(batch_size: int, parts: int) -> int:
    """The next larger number of equal parts of a batch; the same if there is none."""
    return next((n for n in range(parts + 1, batch_size + 1) if batch_size % n == 0), parts)
