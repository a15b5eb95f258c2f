"""Whether two runs gave the same bytes: tables, scores, weights, ensembles, audio. Exit code 1 if they did not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from disturbed import digests

SHOWN = 20
"""Names of files that are printed at most."""


def main() -> int:
    """Compare two folders of results and print the names of files that differ or that one of them lacks."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("results", type=Path, nargs=2, help="a run's results_dir, such as results/demo")
    one, other = found = [digests(folder) for folder in given.parse_args().results]
    if not all(found):
        sys.exit("same_results: no results in one of the folders; give the results_dir of two runs that are whole")
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{len(one)} and {len(other)} files; different: {len(differ)}", *differ[:SHOWN], sep="\n  ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
