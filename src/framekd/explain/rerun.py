"""Which jobs Snakemake would run to make a file again."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from framekd.explain.records import target_of


@dataclass(frozen=True)
class Rerun:
    """What Snakemake would run to make the file again; None, with the reason, where it was not asked."""

    jobs: dict[str, int] | None
    reason: str = ""


def ask_snakemake(path: str, configfiles: Sequence[str] = (), *, snakefile: str = "Snakefile") -> Rerun:
    """Ask Snakemake by a dry run which jobs make `path` again: rule → count."""
    if not Path(snakefile).is_file():
        return Rerun(None, "no Snakefile here; run framekd in the folder of the repository")
    if importlib.util.find_spec("snakemake") is None:
        return Rerun(None, "Snakemake is not installed; pip install 'framekd[workflow]'")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--nolock", "--snakefile", snakefile]
    command += ["--configfile", *configfiles] if configfiles else []
    done = subprocess.run([*command, "--", target_of(path)], capture_output=True, text=True, check=False)
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if re.search("rror|xception", line)]
        why = (errors or lines or ["no output"])[-1]
        return Rerun(None, f"the dry run of Snakemake failed: {why}")
    return Rerun(job_counts(said))


def job_counts(text: str) -> dict[str, int]:
    """The table "Job stats" of Snakemake's output: rule → count, without the total."""
    out: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("Job stats"):
            inside, out = True, {}
        elif inside and (found := re.fullmatch(r"(\S+)\s+(\d+)\s*", line)):
            out[found[1]] = int(found[2])
        elif inside and out:
            inside = False
    out.pop("total", None)
    return out
