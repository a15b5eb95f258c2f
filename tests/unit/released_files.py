"""Checkpoints in the layout of the authors' releases, at the paper's sizes; their tensors take no room in a file."""

from __future__ import annotations

import re
from pathlib import Path

import torch

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
THEIRS = {"ATST-F": "ATST-F", "BEATs": "BEATs", "fPaSST": "fpasst", "M2D": "M2D", "ASiT": "ASIT"}
RELEASED = {"fPaSST": ("model.fpasst.", "model."), "ASiT": ("model.asit.", "model."), "M2D": ("model.m2d.", "model.")}
RELEASED |= {"BEATs": ("model.beats.", "model.model."), "ATST-F": ("model.atst.", "model.atst.")}


def their_keys(name: str, *, teacher: bool = False, depth: int = 2) -> dict[str, tuple[int, ...]]:
    """The authors' names and shapes at the paper's sizes, of the first `depth` blocks."""
    keys = {}
    for line in (FIXTURES / f"state_dict_{THEIRS[name]}.tsv").read_text().splitlines()[1:]:
        key, of_teacher, of_student, *_ = line.split("\t")
        shape = of_teacher if teacher else of_student
        block = re.search(r"(blocks|layers)\.(\d+)\.", key)
        if shape != "-" and (block is None or int(block[2]) < depth):
            keys[key] = tuple(int(n) for n in shape.split("x"))
    return keys


def their_file(
    name: str, step: str, *, depth: int = 2, values: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """A file as released for Step 1 (ssl), 2 (weak: 527 clip classes) or 3 (strong_1), without its storage.

    values: the constant that fills each tensor, by its name in the authors' models; None: zeros.
    """
    canonical, released = RELEASED[name]
    state = {}
    for key, shape in their_keys(name, depth=depth).items():
        value = values[key] if values is not None else 0.0
        if "atst_mel" in key or (key.startswith("strong_head") and step != "strong_1"):
            continue
        if key.startswith("weak_head"):
            if step == "ssl":
                continue
            shape = (527 if step == "weak" else 447, *shape[1:])
        key = released + key.removeprefix(canonical) if key.startswith(canonical) else key
        state[key] = torch.full((1,), value).expand(shape)
    return state
