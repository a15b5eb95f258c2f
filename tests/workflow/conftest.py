"""A copy of the repository without results, and Snakemake to run in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "workflow", "scripts", "config", "profiles", "src", "miniature", "tests/workflow/tiny.yaml")


def copy_repository(folder: Path) -> Path:
    """What a fresh clone has of the pipeline, copied to `folder`."""
    folder.mkdir(parents=True)
    for name in PARTS:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Snakemake as a user would, from the root of `folder`."""
    program = Path(sys.executable).with_name("snakemake")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def jobs(run: subprocess.CompletedProcess) -> dict[str, int]:
    """The table of planned jobs: rule → count; empty where nothing is to be done."""
    text = run.stdout + run.stderr
    assert run.returncode == 0, text
    if "Job stats:" not in text:
        assert "Nothing to be done" in text, text
        return {}
    table = text.split("Job stats:")[-1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\S+)\s+(\d+)$", table, flags=re.M)}


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """The repository without results and data."""
    return copy_repository(tmp_path_factory.mktemp("clone") / "framekd")
