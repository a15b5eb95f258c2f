"""`framekd models`: the published models that `--model` takes by name."""

from __future__ import annotations

import argparse
import json
from typing import Any

from framekd import releases


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("models", help="list the published models, and which of them are here")
    out.set_defaults(run=models)
    out.add_argument("--json", action="store_true", help="the same as JSON")


def models(given: argparse.Namespace) -> int:
    """Print a line per published model."""
    rows = [_row(release) for release in releases.RELEASES]
    if given.json:
        print(json.dumps(rows, indent=1))
        return 0
    heads = ("name", "step", "classes", "size", "licence", "here", "address")
    cells = [heads, *([_cell(row, head) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
    print(f"\nFetched files are kept in {releases.cache_folder() / 'models'}.")
    return 0


def _row(release: releases.Release) -> dict[str, Any]:
    path = release.path
    return {
        "name": release.name,
        "step": release.step,
        "classes": release.classes,
        "size": path.stat().st_size if path.is_file() else release.bytes,
        "address": release.url,
        "licence": releases.LICENCE,
        "here": path.is_file(),
        "path": str(path),
    }


def _cell(row: dict[str, Any], head: str) -> str:
    if head == "size":
        return f"{row['size'] / 1e6:.0f} MB"
    return {True: "yes", False: "no"}[row["here"]] if head == "here" else str(row[head])
