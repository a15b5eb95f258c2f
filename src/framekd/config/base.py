"""What every block of the configuration is made of, and how a mistake in one becomes a sentence."""

from __future__ import annotations

import copy
import difflib
import reprlib
from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from framekd.errors import UserError as UserError


class Block(BaseModel):
    """A part of the configuration. Unknown keys are refused; values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


def field(default: Any, description: str, *, inert: bool = False, **limits: Any) -> Any:
    """A key of a block.

    Args:
        default: its value where the configuration says nothing; a list, dict or block is copied for each use.
        description: the sentence that documents the key, with its source.
        inert: whether the value cannot change a result, so that another value reruns nothing (see :func:`identity`).
        limits: pydantic's limits, such as ``ge=0``.
    """
    if inert:
        limits["json_schema_extra"] = {"inert": True}
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: copy.deepcopy(default), description=description, **limits)
    if isinstance(default, type) and issubclass(default, BaseModel):
        return Field(default_factory=default, description=description, **limits)
    return Field(default=default, description=description, **limits)


Probability: dict[str, Any] = {"ge": 0.0, "le": 1.0}
Seed: dict[str, Any] = {"ge": 0, "le": 2**31 - 1}
MOST_SENTENCES = 8  # of a message about a configuration with many mistakes


def identity(value: Any) -> Any:
    """`value` as plain data without the inert keys of its blocks: what a result depends on.

    A key marked "late" was added when results existed: it is left out while it is None or false, as they were made.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        marks: dict[str, Any] = {name: info.json_schema_extra or {} for name, info in fields}
        absent = {name for name, mark in marks.items() if mark.get("late") and getattr(value, name) in (None, False)}
        inert = {name for name, mark in marks.items() if mark.get("inert")}
        left = [(name, info) for name, info in fields if name not in inert | absent]
        return {info.alias or name: identity(getattr(value, name)) for name, info in left}
    if isinstance(value, dict):
        return {key: identity(item) for key, item in value.items()}
    return [identity(item) for item in value] if isinstance(value, (list, tuple)) else value


def merge(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `difference` laid over it, key by key; null and lists replace the whole value."""
    out = copy.deepcopy(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else copy.deepcopy(value)
    return out


def difference(value: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The keys of `value` that differ from `base`: ``merge(base, difference(value, base))`` is `value`."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        if key not in base:
            out[key] = item
        elif isinstance(item, dict) and isinstance(base[key], dict):
            if inner := difference(item, base[key]):
                out[key] = inner
        elif item != base[key]:
            out[key] = item
    return out


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The configuration blocks inside a type such as ``Teacher | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]


def _block_at(model: type[BaseModel], path: tuple) -> type[BaseModel] | None:
    """The block that holds the last key of `path`."""
    block: type[BaseModel] | None = model
    for key in path[:-1]:
        info = _keys(block).get(key) if block else None
        if info is None:
            continue  # a name that the user chose, as in settings or external
        found = _blocks(info.annotation)
        block = found[0] if found else None
    return block


def _line(path: tuple, value: Any) -> str:
    """The YAML that sets `path` to `value`, on one line."""
    text = {True: "true", False: "false", None: "null"}.get(value, value) if isinstance(value, bool | None) else value
    keys = [str(key) for key in path]
    return ": {".join(keys) + f": {text}" + "}" * (len(keys) - 1)


def shown(value: Any) -> str:
    """A value for a message, on one short line also where it is huge."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    return short.repr(value)


def explain(
    error: ValidationError, model: type[BaseModel], *, prefix: tuple = (), locate: Callable[[str], str] = str
) -> str:
    """One sentence per mistake: the path of the key, what was expected, and the line to write.

    Args:
        prefix: path of the block in the configuration.
        locate: puts the file and the line of a key before a sentence.
    """
    out = []
    for item in error.errors():
        path = tuple(key for key in item["loc"] if key not in ("function-after", "tuple", "int", "float"))
        name = ".".join(map(str, (*prefix, *path)))
        block = _block_at(model, path)
        known = _keys(block) if block else {}
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), list(known), n=1, cutoff=0.5)
            where = ".".join(map(str, (*prefix, *path[:-1]))) or "the configuration"
            if path[-1] in getattr(block, "ELSEWHERE", ()):
                out.append(f"{name} does not act in this training; known keys: {', '.join(known)}.")
                continue
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            out.append(f"{name} is not a key of {where}; {hint}")
            continue
        expected = item["msg"].removeprefix("Value error, ")
        expected = expected[0].lower() + expected[1:] if expected.startswith(("Input", "Value")) else expected
        sentence = f"{name}: {expected}" if name else expected
        if item["type"] != "value_error":
            sentence += f", but it is {shown(item['input'])}"
            info = known.get(str(path[-1])) if path else None
            if info is not None and not info.is_required():
                default = info.get_default(call_default_factory=True)
                sentence += f"; write, for instance, {_line((*prefix, *path), default)}"
        out.append(sentence)
    more = [f"… and {len(out) - MOST_SENTENCES} more"] if len(out) > MOST_SENTENCES else []
    return "\n".join([*map(locate, out[:MOST_SENTENCES]), *more])
