"""Checkpoints in the layout of the authors' releases: at the paper's sizes without room in a file, and small ones."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from framekd.models import FrameModel, build_model

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


def drawn_model(name: str, classes: int, sizes: dict[str, object] | None = None, *, seed: int = 0) -> FrameModel:
    """A model with weights drawn from `seed`."""
    model = build_model(name, n_classes=classes, sizes=sizes)
    return model.init_weights(torch.Generator().manual_seed(seed)).eval()


def save_as_theirs(model: FrameModel, path: Path) -> Path:
    """Write a model of any size under the authors' names."""
    layout, state = model.encoder.REFERENCE, {}
    for name, value in model.state_dict().items():
        if name.startswith(("frame_head.", "clip_head.")):
            state[name.replace("frame_head", "strong_head").replace("clip_head", "weak_head")] = value
            continue
        name = name.removeprefix("encoder.")
        for theirs, ours in layout.renames:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        state[RELEASED[model.name][1] + name] = value
    torch.save(state, path)
    return path
