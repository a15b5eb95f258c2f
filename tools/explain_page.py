"""Write the outputs in docs/explain.md again, from a finished demo.

make demo && .venv/bin/python tools/explain_page.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from framekd.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explain.md"
COMMAND = ".venv/bin/framekd "
FENCE = "```\n"
OUTPUT = rf"({FENCE}{re.escape(COMMAND)}(?P<arguments>[^\n]+)\n{FENCE}{FENCE})(?P<output>.*?)(?={FENCE})"
BLOCK = re.compile(OUTPUT, re.DOTALL)
FILE = re.compile(r"```yaml\n# (?P<path>config/\S+)\n.*?(?=```)", re.DOTALL)


def regenerate(page: str, run: Callable[[list[str]], str]) -> str:
    """`page` with the output of each command that it shows, as ``run(arguments)`` gives it."""
    return BLOCK.sub(lambda found: found[1] + run(found["arguments"].split()).rstrip("\n") + "\n", page)


def files(page: str) -> dict[str, str]:
    """The configurations that the page shows: path → content."""
    return {found["path"]: found[0].removeprefix("```yaml\n") for found in FILE.finditer(page)}


def main() -> None:
    """Run every command of the page in the folder of a finished demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT, help="a copy of the repository with a finished demo")
    folder = parser.parse_args().run.resolve()
    if not (folder / "results" / "demo" / "table1.csv").is_file():
        raise SystemExit(f"{folder}/results/demo/table1.csv: no such file; run make demo first")

    def run(arguments: list[str]) -> str:
        command = [sys.executable, "-m", "framekd.cli", *arguments]
        path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    page = PAGE.read_text()
    shown = {folder / name: content for name, content in files(page).items()}
    if present := [str(path) for path in shown if path.exists()]:
        raise SystemExit(f"{present[0]} exists; the page shows one of that name, so move yours away first")
    try:
        for path, content in shown.items():
            write_text(path, content)
        write_text(PAGE, regenerate(page, run))
    finally:
        for path in shown:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
