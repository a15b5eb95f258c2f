"""`framekd doctor --slurm`: whether Slurm takes the jobs of a configuration, and what one finds on a node."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from framekd import slurm
from framekd.config import Config
from framekd.plan import Plan

REPORT = """
import os, platform, shutil, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print("node", platform.node(), "- CPUs", len(os.sched_getaffinity(0)), "- python", platform.python_version())
shown = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
print("CUDA_VISIBLE_DEVICES", shown, "- torch sees", ", ".join(gpus) or "no GPU")
import framekd
print("framekd", os.path.dirname(framekd.__file__), "- ffmpeg", shutil.which("ffmpeg") or "none")
"""


def options(plan: Plan, stage: str) -> list[str]:
    """What sbatch is asked for a job of a stage."""
    need = plan.resources(stage)
    flags = {"slurm_partition": "-p", "slurm_account": "-A", "qos": "--qos", "constraint": "-C", "runtime": "-t"}
    out = [word for key, flag in flags.items() if key in need for word in (flag, str(need[key]))]
    out += ["--mem", str(need["mem_mb"]), "--requeue"]
    if "gpu" not in need:
        return [*out, "--ntasks=1", f"--cpus-per-task={plan.threads(stage)}"]
    model = f"{need['gpu_model']}:" if "gpu_model" in need else ""
    return [*out, f"--gpus={model}{need['gpu']}", f"--cpus-per-gpu={-(-plan.threads(stage) // int(need['gpu']))}"]


def problems_of_slurm(config: Config, *, patience: float = 600.0) -> Iterator[str]:
    """Ask Slurm about a job of every stage, then run one on the teachers' nodes and print its report.

    Args:
        config: of the run.
        patience: seconds that the job may wait in the queue and run.

    Yields:
        What would stop the run, a sentence each.
    """
    if slurm.ask("sinfo", "--version") is None:
        yield "Slurm: sinfo does not answer; run this on a login node of the cluster"
        return
    plan, refused = Plan(config), set()
    for stage in config.resources:
        run = subprocess.run(
            ["sbatch", "--test-only", *options(plan, stage), "--wrap", "true"], capture_output=True, text=True
        )
        if run.returncode:
            refused.add(stage)
            reason = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in run.stderr.splitlines() if line)
            yield f"resources.{stage}: Slurm refuses its jobs: {reason}"
    if "teacher" not in refused:
        yield from _trial(options(plan, "teacher"), patience)


def _trial(words: list[str], patience: float) -> Iterator[str]:
    """Run the report as a job on a teacher's node; print it, or yield why it did not come."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".doctor-") as folder:
        out = Path(folder).resolve() / "report"
        command = shlex.join([sys.executable, "-c", REPORT])
        words = ["sbatch", "--parsable", "-J", "framekd-doctor", "-o", str(out), *words, "-t", "5", "--wrap", command]
        run = subprocess.run(words, capture_output=True, text=True)
        if run.returncode:
            yield f"Slurm refuses a job: {run.stderr.strip()}"
            return
        job, end, state = run.stdout.strip().split(";")[0], time.monotonic() + patience, None
        print(f"Slurm job {job} was submitted with the resources of a teacher, and is waited for", flush=True)
        try:
            while (state := slurm.state(job)) not in slurm.ENDED and state != "" and time.monotonic() < end:
                time.sleep(1)
        finally:
            if state not in slurm.ENDED:
                slurm.ask("scancel", job)
        with contextlib.suppress(OSError):
            print(out.read_text(errors="replace").strip(), flush=True)
        if state not in ("COMPLETED", ""):
            yield f"Slurm job {job} with a teacher's resources did not end well within {patience:.0f} s: {state}"
