"""Published weight files → our parameters: the authors' names, those of their releases, and the upstream originals.

How an architecture's tensors are called stands with it (`Encoder.REFERENCE`); what to do with names is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from framekd.config import UserError
from framekd.models.encoder import ReferenceLayout
from framekd.models.frame import FrameModel

HEADS = {"strong_head.": "frame_head.", "weak_head.": "clip_head."}
RNN = {"seq_model.rnn.": "rnn."}
ALIAS = ".self_attn.relative_attention_bias.weight"  # one table, stored under the name of each layer


@dataclass(frozen=True)
class Translation:
    """A file's tensors under our names, the file's own name of each, and the names that mean nothing to us."""

    tensors: dict[str, Tensor]
    theirs: dict[str, str]
    unknown: list[str]


def load_reference(model: FrameModel, state_dict: Mapping[str, object], *, heads: bool | str = True) -> FrameModel:
    """Load published weights into `model`, strictly; returns the model.

    state_dict: the authors' parameter names ("model.atst.…"), those of the released files, or an upstream original
    (plain or inside a dictionary with "model", "state_dict", "teacher" or "student").
    heads: True: the file must hold this model's heads (and BiGRU) and nothing else.  False: the encoder only, and
    the BiGRU where both have one.  "matching": those heads that are there and fit; the others keep their values.

    Raises UserError naming the first missing, unexpected and mis-shaped tensor; the model is then unchanged.
    """
    if heads not in (True, False, "matching"):
        raise UserError(f'heads is True, False or "matching", not {heads!r}.')
    layout = model.encoder.REFERENCE
    if layout is None:
        raise UserError(f"{model.name} has no published weights to load; load_checkpoint reads our own files.")
    found = translate(model, unwrap(state_dict), layout)
    own = {name: value for name, value in model.state_dict().items()}
    optional = optional_names(own, found, heads)
    wanted = {name for name in own if name not in optional or name in found.tensors}
    skipped = {name for name in found.tensors if name in optional and not fits(own, found, name)}
    if heads is False:
        skipped |= {name for name in found.tensors if name.startswith(("frame_head.", "clip_head."))}
    if heads == "matching" and any(name.startswith("rnn.") and name not in found.tensors for name in own):
        skipped |= {name for name in found.tensors if name.startswith(("frame_head.", "clip_head."))}
    wanted -= skipped
    refuse_mismatch(model, own, found, wanted, skipped)
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(found.tensors[name])
    return model


def optional_names(own: Mapping[str, Tensor], found: Translation, heads: bool | str) -> set[str]:
    """Names that may be absent or unfitting: none, or heads and BiGRU, according to `heads`."""
    names = {*own, *found.tensors}
    parts: tuple[str, ...] = ("frame_head.", "clip_head.", "rnn.") if heads is not True else ()
    return {name for name in names if name.startswith(parts)} if parts else set()


def fits(own: Mapping[str, Tensor], found: Translation, name: str) -> bool:
    return name in own and own[name].shape == found.tensors[name].shape


def unwrap(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a file: plain, or one level down under a usual name."""
    for key in ("model", "state_dict", "teacher", "student"):
        inner = state_dict.get(key)
        if isinstance(inner, Mapping):
            return unwrap(inner)
    strange = [name for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if strange or not state_dict:
        what = f"{strange[0]!r} is no tensor" if strange else "it is empty"
        raise UserError(f"These weights are not a dictionary of tensors: {what}.")
    return {str(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}


def translate(model: FrameModel, state: Mapping[str, Tensor], layout: ReferenceLayout) -> Translation:
    """Our names for a file's tensors: the prefix that explains most of them is the file's layout."""
    known = {name for name, _ in model.encoder.named_parameters()}
    candidates = [strip(state, layout, prefix) for prefix in (*layout.prefixes, *layout.upstream)]
    best = max(candidates, key=lambda found: len(known & set(found.tensors)))  # the first of equals
    upstream = candidates.index(best) >= len(layout.prefixes)
    tensors, theirs = dict(best.tensors), best.theirs
    unknown = list(best.unknown)
    if upstream:
        unknown = []  # originals hold other networks too (a student, projectors)
        tensors = {name: value for name, value in tensors.items() if not name.startswith(layout.dropped)}
        tensors = model.encoder.adapt(tensors)
    encoder = {f"encoder.{name}": value for name, value in merge_aliases(tensors).items()}
    parts = {}
    for name, value in state.items():
        for head, ours in {**HEADS, **RNN}.items():
            if name.startswith(head):
                parts[ours + name.removeprefix(head)] = value
    names = {f"encoder.{ours}": name for ours, name in theirs.items()}
    return Translation({**encoder, **parts}, names, unknown)


def strip(state: Mapping[str, Tensor], layout: ReferenceLayout, prefix: str) -> Translation:
    tensors, theirs, unknown = {}, {}, []
    for name, value in state.items():
        if name.startswith((*HEADS, *RNN)) or name in layout.constants:
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
    """Drop the other layers' names of the one relative bias table, having checked that they agree."""
    kept = {name: value for name, value in tensors.items() if not name.endswith(ALIAS)}
    table = kept.get("relative_bias.weight")
    for name in tensors.keys() - kept.keys():
        if table is None or not torch.equal(tensors[name], table):
            raise UserError(f"{name} differs from the table of the first layer, which all layers share.")
    return kept


def refuse_mismatch(
    model: FrameModel, own: Mapping[str, Tensor], found: Translation, wanted: set[str], skipped: set[str]
) -> None:
    """One sentence with the first missing, unexpected and mis-shaped tensor, if there is any."""
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
        heads = ("frame_head.", "clip_head.", "rnn.")
        only_heads = all(name.startswith(heads) for name in [*missing, *unexpected, *shapes])
        hint = "; the encoder fits: load with heads=False to keep this model's own heads" if only_heads else ""
        raise UserError(f"These weights are not {model.name}'s as it is built here: {'; '.join(problems)}{hint}.")
