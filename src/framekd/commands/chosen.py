"""Choice of classes on a command line: by name, or by a branch of AudioSet's ontology."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path

from framekd.errors import UserError
from framekd.labels import known_strong, known_weak

ONTOLOGY = "https://raw.githubusercontent.com/audioset/ontology/master/ontology.json"


def chosen_classes(words: Sequence[str], classes: Sequence[str], ontology: str | Path | None = None) -> list[int]:
    """Columns of the classes that `words` name.

    Args:
        words: class names, several in a word with commas between them (names may hold commas themselves). With an
            ontology a name stands for its whole branch.
        classes: the model's.
        ontology: AudioSet's ontology.json.
    Returns:
        Sorted positions in `classes`.
    Raises:
        UserError: a name is neither a class nor a branch.
    """
    groups = {name.casefold(): {i} for i, name in enumerate(classes)}
    for name, members in (branches(ontology, classes) if ontology else {}).items():
        groups[name.casefold()] = groups.get(name.casefold(), set()) | members
    found: set[int] = set()
    for word in words:
        parts = [part.strip() for part in word.split(",")]
        while parts:
            # The longest name first: "Male speech, man speaking" is one class.
            ends = (n for n in range(len(parts), 0, -1) if ", ".join(parts[:n]).casefold() in groups)
            if (end := next(ends, None)) is None:
                raise UserError(_unknown(parts[0], list(groups), with_ontology=ontology is not None))
            found |= groups[", ".join(parts[:end]).casefold()]
            parts = parts[end:]
    if not found:
        raise UserError("--classes: the model has no class in the chosen branches")
    return sorted(found)


def _unknown(name: str, known: Sequence[str], *, with_ontology: bool) -> str:
    near = difflib.get_close_matches(name.casefold(), known, n=3)
    near = near or [one for one in known if name.casefold() in one][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    branch = "" if with_ontology else f" (branches, such as Animal, need --ontology with the file {ONTOLOGY})"
    return f"--classes: the model has no class {name!r}{hint}{branch}"


def branches(ontology: str | Path, classes: Sequence[str]) -> dict[str, set[int]]:
    """Name of every node of the ontology → positions of the classes in its branch, itself included."""
    try:
        nodes = {node["id"]: node for node in json.loads(Path(ontology).read_text(encoding="utf-8"))}
        children = {mid: list(node["child_ids"]) for mid, node in nodes.items()}
        names = {mid: node["name"] for mid, node in nodes.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{ontology} is not AudioSet's ontology.json ({error}); it is at {ONTOLOGY}") from error
    mids = {name: mid for mid, name in names.items()}
    for known in (known_weak(), known_strong()[0]):
        mids |= dict(zip(known.names, known.mids))
    column = {mids[name]: i for i, name in enumerate(classes) if name in mids}

    def below(mid: str) -> set[str]:
        waiting, seen = [mid], set[str]()
        while waiting:
            if (one := waiting.pop()) not in seen:
                seen.add(one)
                waiting += children.get(one, [])
        return seen

    return {name: {column[one] for one in below(mid) if one in column} for mid, name in names.items()}
