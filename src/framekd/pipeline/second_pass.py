"""A second pass after a run in which some trainings of a job failed: what is left, one training per job.

The outputs of a job stand or fall together in Snakemake. So where a job of several trainings fails or is killed, the
finished ones are missing too, and nothing is made from them. The second pass plans a job per training: it gives back
those that are finished (:mod:`framekd.pipeline.kept`), makes what follows, and fails at the broken ones alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from framekd.graph import Graph
from framekd.pipeline.log import OTHERS_KEPT, why_ended

VARIABLE = "FRAMEKD_ONE_BY_ONE"
"""Set in the environment of the second pass: the Snakefile then plans one training per job."""
FORCING = frozenset({"-f", "--force", "-F", "--forceall", "-R", "--forcerun"})
SEVERAL = re.compile(r"/pack\d+\b|/seed\d+_\d[^/]*$")
"""In the name of the log of a job of several trainings."""


def broken_packs(graph: Graph) -> list[Path]:
    """Logs of the last run's jobs of several trainings that were killed, or of which some trainings failed."""
    results = Path(graph.results)
    begun = (results / "config.json").stat().st_mtime  # written when a run starts
    out = []
    for log in sorted((results / "logs").rglob("*.log")):
        if log.stat().st_mtime >= begun and not log.with_suffix(".json").is_file():
            said = why_ended(log)
            if OTHERS_KEPT in said if said is not None else SEVERAL.search(str(log.with_suffix(""))):
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
    print("Second pass, one training per job, since these jobs did not end well:", *logs, file=sys.stderr)
    # The first pass has rerun all that the configuration changed. Another packing must not.
    command = [sys.executable, "-m", "snakemake", "--rerun-triggers", "mtime", "--nolock", *arguments]
    subprocess.run(command, env={**os.environ, VARIABLE: "1"}, check=False)
    return True
