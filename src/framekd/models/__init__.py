"""The models: `build_model("BEATs")` and four others at the paper's sizes, all with the same few methods.

A further architecture is one file with an `Encoder` (its docstring is the contract) and one line in `MODELS`.
"""

from collections.abc import Mapping
from typing import Any

from framekd.config import UserError
from framekd.models.asit import Asit
from framekd.models.atst import Atst
from framekd.models.beats import Beats
from framekd.models.encoder import Encoder, ReferenceLayout
from framekd.models.fpasst import FPasst
from framekd.models.frame import FRAME_SECONDS, FrameModel, attention_pool, init_linear, resolve_sizes
from framekd.models.m2d import M2d
from framekd.models.mel import SAMPLE_RATE, FrontEnd
from framekd.models.tiny import Tiny

MODELS: dict[str, type[Encoder]] = {
    "ATST-F": Atst,
    "BEATs": Beats,
    "fPaSST": FPasst,
    "M2D": M2d,
    "ASiT": Asit,
    "tiny": Tiny,
}
PAPER_MODELS = ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT")

__all__ = [
    "FRAME_SECONDS",
    "MODELS",
    "PAPER_MODELS",
    "SAMPLE_RATE",
    "Encoder",
    "FrameModel",
    "FrontEnd",
    "ReferenceLayout",
    "attention_pool",
    "build_from_spec",
    "build_model",
    "depth_groups",
    "init_linear",
    "spec",
]


def build_model(
    name: str,
    *,
    n_classes: int = 447,
    sequence_model: str | None = None,
    head: str = "linear",
    n_clip_classes: int | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> FrameModel:
    """A model with untrained weights: nothing is read or fetched; `init_weights(generator)` makes them reproducible.

    name: a key of `MODELS`.  sequence_model: None (student) or "bigru" (teacher).  head: "linear" or "attention"
    (DESED).  n_clip_classes: n_classes unless given (Step 2: 527).  sizes: overrides of the paper's, such as
    {"width": 96, "depth": 3, "heads": 3, "rnn_hidden": 48}.  Raises UserError for what does not exist.
    """
    if name not in MODELS:
        raise UserError(f"There is no model called {name!r}; the models are {', '.join(MODELS)}.")
    kind = MODELS[name]
    resolved = resolve_sizes(name, kind.SIZES, sizes)
    return FrameModel(
        name,
        kind(**resolved),
        resolved,
        n_classes=n_classes,
        n_clip_classes=n_clip_classes,
        sequence_model=sequence_model,
        head=head,
    )


def spec(model: FrameModel) -> dict[str, Any]:
    """What `build_from_spec` rebuilds the model from: JSON-able."""
    return model.spec()


def build_from_spec(spec: Mapping[str, Any]) -> FrameModel:
    """The model that a specification describes.

    Raises UserError where a key is missing, or where sample rate, frame length or front end are not this code's.
    """
    needed = ("model", "sizes", "n_classes", "n_clip_classes", "sequence_model", "head")
    checked = ("sample_rate", "frame_seconds", "front_end")
    missing = [key for key in (*needed, *checked) if key not in spec]
    if missing:
        raise UserError(f"The model's specification has no key {missing[0]!r}; it needs {', '.join(needed + checked)}.")
    model = build_model(spec["model"], **{key: spec[key] for key in needed if key != "model"})
    ours = model.spec()
    for key in checked:
        if spec[key] != ours[key]:
            raise UserError(
                f"The specification's {key} is {spec[key]!r}, but {model.name} here has {ours[key]!r}: "
                "it was made by a different front end, so its scores would be wrong."
            )
    return model


def depth_groups(model: FrameModel) -> list[list[str]]:
    """Parameter names by depth, top first, for layer-wise learning rates: see `FrameModel.depth_groups`."""
    return model.depth_groups()
