"""`framekd tables`, `explain`, `verify` and `compare`: questions about a run."""

from __future__ import annotations

import argparse
from typing import Any

from framekd.errors import UserError


def add(commands: Any) -> None:
    """Add the arguments of the commands."""
    out = commands.add_parser("tables", help="write what there is of the tables of a run, and what is missing")
    out.set_defaults(run=partial_tables)
    out.add_argument("results", metavar="RESULTS", help="folder of results, such as results/demo")
    out = commands.add_parser("explain", help="which job made a result, and what has changed since")
    out.set_defaults(run=explain)
    out.add_argument("results", nargs="+", metavar="RESULT", help="a file or checkpoint folder; of two, the difference")
    out.add_argument("--configfile", nargs="+", default=[], help="differences from config/config.yaml")
    out.add_argument("--deep", action="store_true", help="all ancestors, not only the parents")
    out = commands.add_parser("verify", help="find damaged files: compare all that a run keeps with its recorded sums")
    out.set_defaults(run=verify)
    out.add_argument("directories", nargs="+", metavar="DIR", help="folder of results or data, such as results/demo")
    out.add_argument("--no-record", action="store_true", help="do not write the sums of new files to DIR/sums.json")
    out = commands.add_parser("compare", help="which of the paper's numbers and claims a table shows")
    out.set_defaults(run=compare)
    out.add_argument("table", metavar="TABLE", help="table1.csv, teachers.csv or table2.csv of a run")


def verify(given: argparse.Namespace) -> int:
    """Print each damaged file below the folders; the exit code is 1 if there is any."""
    from framekd.verify import verify

    bad = 0
    for directory in given.directories:
        count, found = verify(directory, record=not given.no_record)
        for sentence in found:
            print(f"- {sentence}")
        bad += len(found)
        print(
            f"framekd verify: {directory}: {count} files checked, "
            + (f"{len(found)} damaged" if found else "all whole")
        )
    return int(bad > 0)


def partial_tables(given: argparse.Namespace) -> int:
    """Write what there is of each table that is not complete, and print the names of the files."""
    from framekd.graph import Graph
    from framekd.pipeline.partial import read_config, write_partial_tables

    written = write_partial_tables(Graph(read_config(given.results)))
    print(*written, sep="\n") if written else print("framekd tables: all tables are complete")
    return 0


def explain(given: argparse.Namespace) -> int:
    """Print which job made a result and what has changed since; of two results, what differs."""
    try:
        from framekd import explain
    except ModuleNotFoundError as error:
        raise UserError(f"explain needs {error.name}: pip install 'framekd[workflow]'.") from error

    if len(given.results) > 2:
        raise UserError(f"explain takes one result or two, not {len(given.results)}")
    config = explain.configuration(given.configfile)
    if len(given.results) == 2:
        first, second = given.results
        print(explain.pair_text(explain.explain_pair(first, second, config)))
        return 0
    found = explain.explain(given.results[0], config, deep=given.deep)
    found.rerun = explain.ask_snakemake(given.results[0], given.configfile)
    print(explain.text(found, deep=given.deep))
    return 0


def compare(given: argparse.Namespace) -> int:
    """Print which of the paper's numbers and claims a table shows."""
    from framekd.tables.claims import compare_table, comparison_text

    print(comparison_text(compare_table(given.table)))
    return 0
