"""README.md and docs/ name only files, modules, targets and options that exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from framekd.cli import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
FOLDERS = ("benchmarks", "config", "docs", "miniature", "profiles", "scripts", "src", "tests", "tools", "workflow")


def found(pattern: str) -> list[tuple[str, str]]:
    """(page, match) of a pattern with one group."""
    return [(page, match) for page, text in PAGES.items() for match in re.findall(pattern, text, re.M)]


def commands(program: str) -> list[str]:
    """Command lines of a program in indented or fenced blocks, continued lines joined, without comments."""
    text = "\n".join(PAGES.values()).replace("\\\n", " ")
    lines = re.findall(rf"^ *(?:PYTHONPATH=\S+ )?(?:\.venv/bin/)?({re.escape(program)} .*)$", text, re.M)
    return [line.split("  #")[0].strip() for line in lines]


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute (of an attribute) of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def test_links_lead_to_files():
    for page, target in found(r"\]\((?!https?:)([^)#\s]+)[^)]*\)"):
        folder = ROOT if page == "README.md" else ROOT / "docs"
        assert (folder / target).exists(), f"{page}: {target}"


def test_paths_in_code_spans_exist():
    paths = found(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`")
    assert len(paths) > 20
    assert [pair for pair in paths if not (ROOT / pair[1]).exists()] == []


def test_names_in_code_spans_exist():
    names = found(r"`(framekd\.[\w.]+\w)[`(]")
    assert len(names) > 20
    assert [pair for pair in names if not resolves(pair[1])] == []


def test_imports_in_examples_work():
    blocks = found(r"```python\n((?:.|\n)*?)```")
    assert len(blocks) >= 5
    for page, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert resolves(f"{node.module}.{alias.name}"), f"{page}: {node.module}.{alias.name}"


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = found(r"(?:`|^|    )make (\w+)")
    assert len(named) > 5 and [pair for pair in named if pair[1] not in targets] == []


@pytest.mark.parametrize("line", commands("framekd"))
def test_commands_of_framekd_are_understood(line):
    words = [word for word in shlex.split(line)[1:] if not word.startswith("[")]
    parser().parse_args(words)


@pytest.mark.parametrize("line", commands("python"))
def test_files_and_options_of_commands_exist(line):
    words = shlex.split(line)
    if words[1:3] == ["-m", "pytest"]:
        assert words[3:] and [path for path in words[3:] if not (ROOT / path).exists()] == []
        return
    source = (ROOT / words[1]).read_text()
    for option in re.findall(r"--[a-z-]+", line):
        assert f'"{option}"' in source, f"{words[1]} has no {option}"
