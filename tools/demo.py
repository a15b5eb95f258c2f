"""Run the whole pipeline on the embedded miniature, show its progress and print the tables: what `make demo` calls.

Snakemake's messages go to results/demo/logs/snakemake.log. CORES=n changes the number of cores (2).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from snakemake_logger_plugin_framekd.progress import clock_time

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "demo"
LOG = OUT / "logs" / "snakemake.log"
COMMAND = [sys.executable, "-m", "snakemake", "--configfile", "config/demo.yaml", "--logger", "framekd"]
COMMAND += ["--resources", "mem_mb=6000", "--cores", os.environ.get("CORES", "2")]


class PeakMemory(threading.Thread):
    """The largest memory of a process and its children together (proportional share, GB), while it runs."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak = psutil.Process(pid), 0.0

    def run(self) -> None:
        """Measure every 3 s: reading the memory maps of a process delays it."""
        while self.root.is_running():
            try:
                family = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, sum(map(_memory, family)) / 1e9)
            time.sleep(3.0)


def _memory(process: psutil.Process) -> int:
    try:
        used = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(used, "pss", used.rss)


def main() -> int:
    """Run Snakemake and print the tables; returns its exit status."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with LOG.open("a") as log:
        process = subprocess.Popen([*COMMAND, *sys.argv[1:]], cwd=ROOT, env=environment, stderr=log)
        memory = PeakMemory(process.pid)
        memory.start()
        code = process.wait()
    if code:
        print(f"make demo: stopped; see {LOG.relative_to(ROOT)}, then run it again to continue.")
        return code
    for name in ("table1.md", "table2.md"):
        print((OUT / name).read_text())
    took = f"{clock_time(time.time() - began)} min, at most {memory.peak:.1f} GB"
    print(f"make demo: done in {took}; open {(OUT / 'report.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
