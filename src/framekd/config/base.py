"""What every block of the configuration is made of."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Block(BaseModel):
    """A part of the configuration: unknown keys are refused, values are never changed in place."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def field(default: Any, description: str, **limits: Any) -> Any:
    """A key with its default and the sentence that documents it (with its source)."""
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: copy.deepcopy(default), description=description, **limits)
    if isinstance(default, type) and issubclass(default, BaseModel):
        return Field(default_factory=default, description=description, **limits)
    return Field(default=default, description=description, **limits)


Probability = {"ge": 0.0, "le": 1.0}


def merge(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """`base` with `difference` laid over it, key by key; null and lists replace whole."""
    out = copy.deepcopy(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else copy.deepcopy(value)
    return out
