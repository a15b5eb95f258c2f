"""Loading published weights: the authors' files, their releases, and the files of the original models.

`Encoder.REFERENCE` holds the names of each architecture; this module translates them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from framekd.config import UserError
from framekd.models.encoder import ReferenceLayout
from framekd.models.frame import FrameModel

THEIR_PARTS = {"strong_head.": "frame_head.", "weak_head.": "clip_head.", "seq_model.rnn.": "rnn."}
HEADS = ("frame_head.", "clip_head.")
PARTS = (*HEADS, "rnn.")
ALIAS = ".self_attn.relative_attention_bias.weight"  # BEATs stores its one table under the name of each layer


@dataclass(frozen=True)
class Translation:
    """Tensors of a file under our names.

    Attributes:
        tensors: by our name.
        theirs: our name → the file's name.
        unknown: names in the file that have no translation.
    """

    tensors: dict[str, Tensor]
    theirs: dict[str, str]
    unknown: list[str]


def load_reference(model: FrameModel, state_dict: Mapping[str, object], *, heads: bool | str = True) -> FrameModel:
    """Load published weights into a model, strictly.

    Args:
        model: is changed in place.
        state_dict: tensors under the authors' names ("model.atst.…"), those of the released files or of an original
            model, plain or inside a dictionary under "model", "state_dict", "teacher" or "student".
        heads: True requires exactly this model's heads and BiGRU. False loads the encoder, and the BiGRU if both have
            one. "matching" also loads the heads that are present and fit; the others keep their values.

    Returns:
        The model.

    Raises:
        UserError: the first missing, unexpected and mis-shaped tensor; the model is then unchanged.
    """
    if heads not in (True, False, "matching"):
        raise UserError(f'heads must be True, False or "matching", not {heads!r}.')
    layout = model.encoder.REFERENCE
    if layout is None:
        raise UserError(f"{model.name} has no published weights; use load_checkpoint for framekd's own files.")
    found = translate(model, unwrap(state_dict), layout)
    own = model.state_dict()
    optional = optional_names(own, found, heads)
    wanted = {name for name in own if name not in optional or name in found.tensors}
    skipped = {name for name in found.tensors if name in optional and not fits(own, found, name)}
    rnn_missing = any(name.startswith("rnn.") and name not in found.tensors for name in own)
    if heads is False or (heads == "matching" and rnn_missing):
        skipped |= {name for name in found.tensors if name.startswith(HEADS)}
    wanted -= skipped
    refuse_mismatch(model, own, found, wanted, skipped)
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(found.tensors[name])
    return model


def optional_names(own: Mapping[str, Tensor], found: Translation, heads: bool | str) -> set[str]:
    """Return the names that may be missing or mis-shaped: heads and BiGRU, unless `heads` is True."""
    return set() if heads is True else {name for name in (*own, *found.tensors) if name.startswith(PARTS)}


def fits(own: Mapping[str, Tensor], found: Translation, name: str) -> bool:
    """Whether the model has a tensor of this name and shape."""
    return name in own and own[name].shape == found.tensors[name].shape


def unwrap(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors of a file, plain or inside a dictionary under a usual key.

    Raises:
        UserError: the file is empty or holds something that is not a tensor.
    """
    for key in ("model", "state_dict", "teacher", "student"):
        inner = state_dict.get(key)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    strange = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strange or not state_dict:
        what = f"{strange[0]!r} is not a tensor" if strange else "it is empty"
        raise UserError(f"The weights must be a dictionary of tensors: {what}.")
    return {str(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}


def translate(model: FrameModel, state: Mapping[str, Tensor], layout: ReferenceLayout) -> Translation:
    """Translate the names of a file, whose layout is the prefix that yields most of the encoder's names."""
    known = {name for name, _ in model.encoder.named_parameters()}
    candidates = [strip(state, layout, prefix) for prefix in (*layout.prefixes, *layout.upstream)]
    best = max(candidates, key=lambda found: len(known & set(found.tensors)))  # the first of equals
    upstream = candidates.index(best) >= len(layout.prefixes)
    tensors, theirs = dict(best.tensors), best.theirs
    unknown = list(best.unknown)
    if upstream:
        unknown = []  # files of original models hold other networks too (a student, projectors)
        tensors = {name: value for name, value in tensors.items() if not name.startswith(layout.dropped)}
        tensors = model.encoder.adapt(tensors)
    encoder = {f"encoder.{name}": value for name, value in merge_aliases(tensors).items()}
    parts = {}
    for name, value in state.items():
        for part, ours in THEIR_PARTS.items():
            if name.startswith(part):
                parts[ours + name.removeprefix(part)] = value
    names = {f"encoder.{ours}": name for ours, name in theirs.items()}
    return Translation({**encoder, **parts}, names, unknown)


def strip(state: Mapping[str, Tensor], layout: ReferenceLayout, prefix: str) -> Translation:
    """Translate the encoder's tensors, whose names start with `prefix`."""
    tensors, theirs, unknown = {}, {}, []
    for name, value in state.items():
        if name.startswith(tuple(THEIR_PARTS)) or name in layout.constants:
            continue
        if not name.startswith(prefix):
            unknown.append(name)
            continue
        ours = name.removeprefix(prefix)
        for old, new in layout.renames:
            if ours.startswith(old):
                ours = new + ours.removeprefix(old)
                break
        tensors[ours], theirs[ours] = value, name
    return Translation(tensors, theirs, unknown)


def merge_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the copies of the relative bias table under the names of the other layers.

    Raises:
        UserError: a copy differs from the table.
    """
    kept = {name: value for name, value in tensors.items() if not name.endswith(ALIAS)}
    table = kept.get("relative_bias.weight")
    for name in tensors.keys() - kept.keys():
        if table is None or not torch.equal(tensors[name], table):
            raise UserError(f"{name} differs from the table of the first layer, which all layers share.")
    return kept


def refuse_mismatch(
    model: FrameModel, own: Mapping[str, Tensor], found: Translation, wanted: set[str], skipped: set[str]
) -> None:
    """Raise a UserError that names the first missing, unexpected and mis-shaped tensor, if there is one.

    Frozen parameters may be missing; they are removed from `wanted`.
    """
    frozen = {f"encoder.{name}" for name, p in model.encoder.named_parameters() if not p.requires_grad}
    missing = [name for name in own if name in wanted and name not in found.tensors and name not in frozen]
    unexpected = [*found.unknown, *(n for n in found.tensors if n not in own and n not in skipped)]
    shapes = [n for n in own if n in wanted and n in found.tensors and own[n].shape != found.tensors[n].shape]
    for name in frozen - found.tensors.keys():
        wanted.discard(name)
    problems = []
    if missing:
        problems.append(f"missing: {missing[0]} ({len(missing)} in all)")
    if unexpected:
        problems.append(f"unexpected: {found.theirs.get(unexpected[0], unexpected[0])} ({len(unexpected)} in all)")
    if shapes:
        name = shapes[0]
        theirs, ours = tuple(found.tensors[name].shape), tuple(own[name].shape)
        problems.append(f"of another shape: {name}, {theirs} in the file, {ours} here ({len(shapes)} in all)")
    if problems:
        only_heads = all(name.startswith(PARTS) for name in [*missing, *unexpected, *shapes])
        hint = "; the encoder fits: load with heads=False to keep this model's own heads" if only_heads else ""
        raise UserError(f"These weights are not {model.name}'s as it is built here: {'; '.join(problems)}{hint}.")
