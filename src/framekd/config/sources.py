"""Reading configuration files, and where in them each key is: duplicate keys and alias bombs are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framekd.config.base import UserError, merge

LARGEST_FILE = 4 << 20
"""Bytes above which a file is no configuration."""
MOST_VALUES = 100_000
"""Values of a file with its aliases written out; more is a mistake or an attack."""

Lines = dict[tuple[str, ...], int]


@dataclass
class Sources:
    """The files that a configuration was read from, and the line of each key in them. Later files count first."""

    files: list[tuple[str, Lines]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.files)

    def stated(self, *path: str) -> list[str]:
        """The files that state the key `path`."""
        return [name for name, lines in self.files if path in lines]

    def place(self, *keys: str) -> str:
        """File and line of keys such as "student.recipe.epochs", or of what they come from; "" where it is unknown.

        Of several keys it is the place of the one in the last file, which is what a user has changed.
        """
        found = [at for key in keys for at in [self._exact(tuple(key.split(".")))] if at is not None]
        path = tuple(keys[0].split("."))
        above = [at for n in range(len(path) - 1, 0, -1) for at in [self._last(path[:n])] if at is not None]
        if not found and not above:
            return self.files[-1][0] if self.files else ""
        name, _ = self.files[(at := max(found, key=lambda at: at[0]) if found else above[0])[0]]
        return f"{name}, line {at[1]}" if at[1] else name

    def _last(self, path: tuple[str, ...]) -> tuple[int, int] | None:
        """The last file that states `path`, by number, and the line."""
        stated = [(i, lines[path]) for i, (_, lines) in enumerate(self.files) if path in lines]
        return stated[-1] if stated else None

    def _exact(self, path: tuple[str, ...]) -> tuple[int, int] | None:
        """Where `path` is stated, or the key of the stage, or of the block `recipe`, that it takes its value from."""
        wanted = [path]
        if path[0] == "settings":
            wanted.append(path[2:])
        if (kind := next((part for part in ("recipe", "frozen", "finetune") if part in path[1:]), None)) is not None:
            wanted.append(("recipe", *path[path.index(kind, 1) + 1 :]))
        return next((at for one in wanted for at in [self._last(one)] if at is not None), None)

    def locate(self, sentence: str) -> str:
        """`sentence`, which begins with the path of a key, with the file and the line of the key before it."""
        found = re.match(r"[^\s:;,]+", sentence)
        place = self.place(found[0]) if found else ""
        return f"{place}: {sentence}" if place else sentence


def read_sources(paths: Iterable[str | Path], given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Sources]:
    """The values of configuration files, later ones laid over earlier ones, and where their keys are.

    Args:
        paths: YAML files.
        given: values of the command line (``--config``), which are laid over the files.
    Raises:
        UserError: a file that is absent, too large, no YAML or no mapping, or that states a key twice.
    """
    values, sources = dict[str, Any](), Sources()
    for path in map(Path, paths):
        read, lines = read_yaml(path)
        values = merge(values, read)
        sources.files.append((_shown(path), lines))
    if given:
        values = merge(values, dict(given))
        sources.files.append(("--config", dict.fromkeys(_paths(given), 0)))
    return values, sources


def _shown(path: Path) -> str:
    """The path as a user wrote it: relative to the working folder where it lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _paths(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterable[tuple[str, ...]]:
    for key, value in values.items():
        yield (*prefix, str(key))
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, str(key)))


def read_yaml(path: str | Path) -> tuple[dict[str, Any], Lines]:
    """A configuration file: its values, and the line of each key by path.

    Raises:
        UserError: the file is absent, no YAML with keys at its top, states a key twice, or is far too large.
    """
    import yaml

    path = Path(path)
    name = _shown(path)
    if not path.is_file():
        raise UserError(f"{name}: no such configuration file; check the path after --configfile")
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{name}: {path.stat().st_size} bytes are no configuration; check the path after --configfile")
    try:
        text = path.read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise UserError(f"{name}: the file is empty; write keys and values, such as `seeds: [1, 2, 3]`")
            lines = Lines()
            _walk(node, (), lines, name)
            _refuse_bomb(node, name)
            values = loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file in UTF-8; is it a configuration?") from None
    except RecursionError:
        raise UserError(f"{name}: not a configuration: its values are nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{name}{where}: not YAML: {str(what).splitlines()[0].strip()}; correct the line") from None
    except ValueError as error:  # a scalar such as the date 2024-99-99
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not YAML: {error}; put the value in quotes") from None
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected keys and values, such as `seeds: [1, 2, 3]`")
    return values, lines


def _walk(node: Any, path: tuple[str, ...], lines: Lines, name: str, seen: frozenset[int] = frozenset()) -> None:
    """Note the line of every key below `node`; UserError for a key that one mapping has twice."""
    import yaml

    if not isinstance(node, yaml.MappingNode) or id(node) in seen or len(lines) > MOST_VALUES:
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first and key.tag != "tag:yaml.org,2002:merge":
            twice = f"{'.'.join((*path, key.value))} is stated twice, first in line {first[key.value]}"
            raise UserError(f"{name}, line {line}: {twice}; remove one of the two")
        first[key.value] = line
        lines[(*path, key.value)] = line
        _walk(value, (*path, key.value), lines, name, seen | {id(node)})


def _refuse_bomb(root: Any, name: str) -> None:
    """UserError if the document has far too many values once its aliases are written out, or contains itself."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in open_nodes:
            raise UserError(f"{name}, line {node.start_mark.line + 1}: a value contains itself; remove the alias")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if isinstance(node.value, list) else []
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            sizes[id(node)] = 1 + sum(map(size, parts))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if (found := size(root)) > MOST_VALUES:
        raise UserError(f"{name}: its aliases stand for {found:.0e} values, more than any configuration; remove them")
