"""Building a model from a name and sizes, or from the specification in a checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from framekd.config import UserError, resolve_sizes
from framekd.models.asit import Asit
from framekd.models.atst import Atst
from framekd.models.beats import Beats
from framekd.models.encoder import Encoder
from framekd.models.fpasst import FPasst
from framekd.models.frame import FrameModel
from framekd.models.m2d import M2d
from framekd.models.mel import SWITCHES
from framekd.models.tiny import Tiny

ENCODERS: dict[str, type[Encoder]] = {
    "ATST-F": Atst,
    "BEATs": Beats,
    "fPaSST": FPasst,
    "M2D": M2d,
    "ASiT": Asit,
    "tiny": Tiny,
}
"""Every architecture by name. A new one is a file with an `Encoder` and a line here."""


def build_model(
    name: str,
    *,
    n_classes: int = 447,
    sequence_model: str | None = None,
    head: str = "linear",
    n_clip_classes: int | None = None,
    sizes: Mapping[str, Any] | None = None,
    front_end: Mapping[str, Any] | None = None,
) -> FrameModel:
    """Build a model with untrained weights. No file is read; `init_weights(generator)` makes the weights reproducible.

    Args:
        name: a key of `ENCODERS`.
        n_classes: classes of the frame predictions.
        sequence_model: None (students) or "bigru" (teachers).
        head: "linear", or "attention" (DESED).
        n_clip_classes: classes of the clip predictions; None means n_classes (Step 2 has 527).
        sizes: values that differ from the paper's, such as {"width": 96, "depth": 3, "heads": 3, "rnn_hidden": 48};
            `mlp_ratio` may replace `mlp`.
        front_end: switches of the front end that are not at their default (:data:`framekd.models.mel.SWITCHES`).

    Raises:
        UserError: the name, a size, a switch, the head or the sequence model does not exist, or the sizes do not fit
            together.
    """
    if name not in ENCODERS:
        raise UserError(f"There is no model called {name!r}; the models are {', '.join(ENCODERS)}.")
    encoder = ENCODERS[name]
    resolved = resolve_sizes(name, sizes)
    built = encoder(**resolved)
    built.front_end.switch(front_end or {})
    return FrameModel(
        name,
        built,
        resolved,
        n_classes=n_classes,
        n_clip_classes=n_clip_classes,
        sequence_model=sequence_model,
        head=head,
    )


DRAWS = (Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_, init.kaiming_normal_)


class WithoutDraws(TorchFunctionMode):
    """A context that leaves new weights as they are in memory, for models that are loaded from a file.

    It saves the draws of 90 million random numbers: about 1 s of a processor.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip the operations that draw. The mode does not see what those of `init` call."""
        if func in DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_from_spec(spec: Mapping[str, Any]) -> FrameModel:
    """Build the model that a specification (`FrameModel.spec`) describes, with untrained weights.

    Raises:
        UserError: a key is missing, or sample rate, frame length or front end differ from this code's.
    """
    needed = ("model", "sizes", "n_classes", "n_clip_classes", "sequence_model", "head")
    checked = ("sample_rate", "frame_seconds", "front_end")
    missing = [key for key in (*needed, *checked) if key not in spec]
    if missing:
        raise UserError(f"The model's specification has no key {missing[0]!r}; it needs {', '.join(needed + checked)}.")
    parts = {key: spec[key] for key in needed if key != "model"}
    model = build_model(spec["model"], **parts, front_end=switches(spec))
    ours = model.spec()
    for key in checked:
        if spec[key] != ours[key]:
            raise UserError(
                f"The specification's {key} is {spec[key]!r}, but {model.name} here has {ours[key]!r}: "
                "it was made by a different front end, so its scores would be wrong."
            )
    return model


def switches(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The switches of the front end in a specification: what `build_model` takes as `front_end`."""
    found = spec["front_end"]
    return {key: found[key] for key in SWITCHES if key in found} if isinstance(found, Mapping) else {}
