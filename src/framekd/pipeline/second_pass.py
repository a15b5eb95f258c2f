"""A second pass after a run in which some trainings of a job failed: what is left, one training per job.

The outputs of a job stand or fall together in Snakemake. So where a job of several trainings fails, the finished ones
are missing too, and nothing is made from them. The second pass plans a job per training: it gives back those that are
finished (:mod:`framekd.pipeline.kept`), makes what follows from them, and fails at the broken ones alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from framekd.graph import Graph
from framekd.pipeline.log import OTHERS_KEPT

VARIABLE = "FRAMEKD_ONE_BY_ONE"
"""Set in the environment of the second pass: the Snakefile then plans one training per job."""
FORCING = frozenset({"-f", "--force", "-F", "--forceall", "-R", "--forcerun"})


def broken_packs(graph: Graph) -> list[Path]:
    """Logs of the last run's jobs of which some trainings failed and others are finished."""
    results = Path(graph.results)
    begun = (results / "config.json").stat().st_mtime  # written when a run starts
    out = []
    for log in sorted((results / "logs").rglob("*.log")):
        if log.stat().st_mtime >= begun and not log.with_suffix(".json").is_file():
            text = log.read_text(encoding="utf-8", errors="replace").rstrip()
            if OTHERS_KEPT in text.rpartition("\n")[2]:
                out.append(log)
    return out


def second_pass(graph: Graph, *, stopped: bool, arguments: Sequence[str] = tuple(sys.argv[1:])) -> bool:
    """Run Snakemake once more for what follows from the finished trainings of broken packs.

    Args:
        graph: of the run that has just ended with an error.
        stopped: whether the user stopped it: then there is no second pass.
        arguments: those of the run.

    Returns:
        Whether there was a second pass. It has written the partial tables.
    """
    if stopped or VARIABLE in os.environ or FORCING & set(arguments) or not (logs := broken_packs(graph)):
        return False
    print("Second pass, one training per job, since some of these jobs are finished:", *logs, file=sys.stderr)
    # The first pass has rerun all that the configuration changed. Another packing must not.
    command = [sys.executable, "-m", "snakemake", "--rerun-triggers", "mtime", "--nolock", *arguments]
    subprocess.run(command, env={**os.environ, VARIABLE: "1"}, check=False)
    return True
