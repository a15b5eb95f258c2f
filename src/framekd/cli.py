"""The command line: one module of :mod:`framekd.commands` per group of commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from framekd.commands import (
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    listen,
    models,
    predict,
    resume,
    runs,
    thresholds,
)
from framekd.errors import UserError

COMMANDS = (predict, listen, thresholds, models, embed, evaluate, finetune, export, doctor, runs, resume)


def parser() -> argparse.ArgumentParser:
    """The argument parser of `framekd`."""
    out = argparse.ArgumentParser(prog="framekd", description="Detect sound events, and look after a run.")
    commands = out.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        module.add(commands)
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. An error of the user or the system is one sentence on stderr, code 1."""
    given = parser().parse_args(arguments)
    try:
        return given.run(given)
    except (UserError, OSError) as error:
        print(f"framekd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
