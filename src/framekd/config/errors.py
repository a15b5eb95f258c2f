"""Mistakes in a configuration, told in one sentence each."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: which file or key, what was expected, what to do."""


def _children(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The configuration blocks inside a type such as ``Teacher | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]


def _at(model: type[BaseModel], path: tuple) -> type[BaseModel] | None:
    """The block that holds the last key of `path`."""
    block: type[BaseModel] | None = model
    for key in path[:-1]:
        info = _children(block).get(key) if block else None
        if info is None:
            continue  # a name of the user's, as in settings or external
        found = _blocks(info.annotation)
        block = found[0] if found else None
    return block


def _line(path: tuple, value: Any) -> str:
    """The YAML that sets `path` to `value`, on one line."""
    text = {True: "true", False: "false", None: "null"}.get(value, value) if isinstance(value, bool | None) else value
    keys = [str(key) for key in path]
    return ": {".join(keys) + f": {text}" + "}" * (len(keys) - 1)


def explain(error: ValidationError, model: type[BaseModel], *, prefix: tuple = ()) -> str:
    """One sentence per mistake: the path of the key, what was expected and the line to write."""
    out = []
    for item in error.errors():
        path = tuple(key for key in item["loc"] if key not in ("function-after", "tuple", "int", "float"))
        name = ".".join(map(str, (*prefix, *path)))
        block = _at(model, path)
        known = _children(block) if block else {}
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), list(known), n=1, cutoff=0.5)
            where = ".".join(map(str, (*prefix, *path[:-1]))) or "the configuration"
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            out.append(f"{name} is not a key of {where}; {hint}")
            continue
        expected = item["msg"].removeprefix("Value error, ")
        expected = expected[0].lower() + expected[1:] if expected.startswith(("Input", "Value")) else expected
        sentence = f"{name}: {expected}" if name else expected
        if item["type"] != "value_error":
            sentence += f", but it is {item['input']!r}"
            info = known.get(str(path[-1])) if path else None
            if info is not None and not info.is_required():
                sentence += (
                    f"; write, for instance, {_line((*prefix, *path), info.get_default(call_default_factory=True))}"
                )
        out.append(sentence)
    return "\n".join(out)
