"""The code version of every stage: a number among the parameters of its jobs, so that new code reruns them.

Rule: raise a number when the stage gives other bytes for the same configuration and inputs. Whatever is changed, run
``make versions`` afterwards: it records a hash of the stage's code beside the number, and a test compares the two, so
that no change goes unnoticed. The hash is that of the syntax trees of all modules that the stage imports, without
docstrings: comments and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from importlib import resources
from pathlib import Path

ENTRIES = {
    "miniature": "miniature",
    "acquire": "pipeline.audioset",
    "task_data": "pipeline.task_data",
    "checkpoint": "pipeline.checkpoints",
    "train": "pipeline.train",
    "search": "pipeline.search",
    "ensemble": "pipeline.ensemble",
    "evaluate": "pipeline.evaluate",
    "published": "pipeline.published",
    "downstream": "pipeline.downstream",
    "tables": "tables",
    "report": "report",
}
"""Stage → the module (or package) of framekd that it starts in."""
FILE = "versions.json"
ROOT = Path(__file__).parent


def _recorded() -> dict[str, dict]:
    return json.loads(resources.files("framekd").joinpath(FILE).read_text(encoding="utf-8"))


VERSIONS: dict[str, int] = {stage: about["version"] for stage, about in _recorded().items()}
"""Stage → its code version."""


def _path(module: str) -> Path | None:
    """File of a module of framekd, named without the package; None if there is none."""
    base = ROOT.joinpath(*module.split(".")) if module else ROOT
    found = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in found if path.is_file()), None)


@cache
def _summary(text: str) -> tuple[str, frozenset[str]]:
    """The code of a file as JSON, and the names that may be modules of framekd which it imports."""
    tree = ast.parse(text)
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        out |= {name.removeprefix("framekd.") for name in names if name.startswith("framekd.")}
    return json.dumps(_content(tree)), frozenset(out)


def modules(stage: str) -> list[Path]:
    """Files of all modules that a stage imports, directly or not, sorted."""
    waiting, found = [ENTRIES[stage]], dict[str, Path]()
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += sorted(_summary(path.read_text(encoding="utf-8"))[1])
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return sorted(path for name, path in found.items() if name != "versions")


def _content(node: object) -> object:
    """A syntax tree as plain lists, without places, docstrings and what Python versions add."""
    if isinstance(node, list):
        return [_content(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"}
    body = fields.get("body")
    if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        fields["body"] = [item for item in body if not _is_text(item)]
    return [type(node).__name__, [[name, _content(value)] for name, value in fields.items()]]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code_hash(stage: str) -> str:
    """A hash of the code that a stage runs."""
    hasher = hashlib.blake2b(digest_size=8)
    for path in modules(stage):
        code, _ = _summary(path.read_text(encoding="utf-8"))
        hasher.update(f'["{path.relative_to(ROOT).as_posix()}", {code}]'.encode())
    return hasher.hexdigest()


def main() -> int:
    """Record the hash of every stage, and name the stages whose code has changed."""
    before = _recorded()
    after = {stage: {"version": before.get(stage, {}).get("version", 1), "code": code_hash(stage)} for stage in ENTRIES}
    changed = [stage for stage in after if after[stage] != before.get(stage)]
    (ROOT / FILE).write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
    for stage in changed:
        print(f"{stage}: the code has changed; if its results have too, raise the number in src/framekd/{FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
