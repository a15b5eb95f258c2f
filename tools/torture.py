"""A crash matrix: disturb a run at random moments, go on with `framekd resume`, compare it with an undisturbed run.

    python tools/torture.py --moments 100                     the small run of the demo's whole graph
    python tools/torture.py --moments 20 --students           trainings, scores and Table I alone
    python tools/torture.py --moments 25 --through slurm      on the test cluster of tests/cluster

Runs are in a temporary folder: of root, a tmpfs, which can be filled. A moment is 0 to `--within` seconds after a
start, the last moment or the end of a job. When a run is whole it is compared, and the next one begins. Every moment is
a line of the log, and a later call goes on with its count; moments of a run that was not compared do not count. The
exit code is 1 if anything was wrong, lost or hung.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from disturbed import KINDS, ROOT_KINDS, SLURM_KINDS, Disturbed, digests

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "scripts", "config", "profiles", "src", "miniature", "tests/workflow")


def copy(source: Path, folder: Path) -> None:
    """The repository without results."""
    for name in PARTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        tree = (source / name).is_dir()
        shutil.copytree(source / name, folder / name, ignore=ignore) if tree else shutil.copy(source / name, folder)
    (folder / "slurm").symlink_to("profiles/slurm")


@contextmanager
def place(size: str) -> Iterator[tuple[Path, bool]]:
    """A temporary folder, and whether it is a tmpfs of its own."""
    folder = Path(tempfile.mkdtemp(prefix="framekd-torture-"))
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "framekd-torture", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(options, capture_output=True).returncode == 0
    try:
        yield folder, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder])
        shutil.rmtree(folder, ignore_errors=True)


class Log:
    """Records of moments and runs, one JSON object a line. Those of other code or another configuration are dropped."""

    def __init__(self, path: Path, about: str) -> None:
        self.path, self.runs, self.moments = path, list[dict[str, Any]](), list[dict[str, Any]]()
        self.expected: dict[str, str] | None = None
        self.seconds = 0
        self.about, self.pending = about, list[dict[str, Any]]()
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        if lines and lines[0].get("about") == about:
            self.expected, self.seconds = lines[0]["expected"], lines[0]["seconds"]
            for record in lines[1:]:
                self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        if "kind" not in record:
            self.runs.append(record)
            self.moments, self.pending = self.moments + self.pending, []
        else:  # the first moment of a run: those before it are of a run that was not compared
            self.pending = [*(self.pending if record["moment"] > 1 else ()), record]

    def begin(self, expected: dict[str, str], seconds: float) -> None:
        """Begin anew, with the files of an undisturbed run and how long it took."""
        self.expected, self.seconds = expected, round(seconds)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"about": self.about, "seconds": self.seconds, "expected": expected}) + "\n")

    def add(self, record: dict[str, Any]) -> None:
        """Write a record; that of a run makes the moments before it count."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._count(record)
        if "kind" in record:
            print(f"{len(self.moments) + len(self.pending):4d} {record['kind']} after {record['seconds']} s, during "
                  f"{', '.join(record['stages']) or 'no job'}; {record['finished']} pieces of long work finished",
                  flush=True)  # fmt: skip
        else:
            print(f"compared {len(self.expected or ())} files: wrong {record['wrong'][:5]}, lost {record['lost'][:5]}, "
                  f"hung {record['hung']}, failed {record['failed']}; {record['minutes']} min", flush=True)  # fmt: skip

    def summary(self) -> str:
        def counts(names: Iterator[str]) -> str:
            return ", ".join(f"{name} {n}" for name, n in sorted(Counter(names).items()))

        wrong, lost = (sum(len(run[key]) for run in self.runs) for key in ("wrong", "lost"))
        hung = sum(run["hung"] or run["failed"] for run in self.runs)
        return (
            f"moments {len(self.moments)}: {counts(moment['kind'] for moment in self.moments)}\n"
            f"during: {counts(name for moment in self.moments for name in moment['stages'] or ['no job'])}\n"
            f"runs compared {len(self.runs)}, of {len(self.expected or ())} files each: wrong {wrong}, lost {lost}, "
            f"hung {hung}; {sum(run['minutes'] for run in self.runs) / 60:.1f} hours"
        )

    def bad(self) -> bool:
        return any(run["wrong"] or run["lost"] or run["hung"] or run["failed"] for run in self.runs)


def main() -> int:
    """Run the matrix."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--moments", type=int, default=100, help="how often runs are disturbed, with those of the log")
    out.add_argument("--within", type=float, help="seconds (default: a thirtieth of an undisturbed run)")
    out.add_argument("--minutes", type=float, default=600.0, help="after which no run is disturbed any more")
    out.add_argument("--seed", type=int, default=1)
    out.add_argument("--students", action="store_true", help="the smaller graph")
    out.add_argument("--through", choices=("slurm",), help="start jobs through the test cluster")
    out.add_argument("--log", type=Path, help="default: results/torture[-students][-slurm].jsonl")
    given = out.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # nothing of it stays behind
    name, targets = ("students", ["results/students/table1.csv"]) if given.students else ("tiny", ["all"])
    arguments = ["--configfile", "config/demo.yaml", f"tests/workflow/{name}.yaml", "--cores", "2", "--keep-going"]
    arguments += ["--", *targets]
    called = "".join(["torture", "-students" * given.students, f"-{given.through}" if given.through else ""])
    until = time.monotonic() + 60 * given.minutes
    sys.path.insert(0, str(ROOT / "tests/cluster"))
    from slurm_here import cluster, install

    if given.through and (reason := install()):
        sys.exit(f"no cluster here: {reason}")
    with place("3g") as (work, mounted), cluster() if given.through else nullcontext() as up:
        source, whole = work / "source", work / "undisturbed"
        copy(ROOT, source)
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        about = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
        log = Log(given.log or ROOT / f"results/{called}.jsonl", about)
        if log.expected is None:
            copy(source, whole)
            began = time.monotonic()
            command = [sys.executable, "-m", "snakemake", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(whole / "src")}
            run = subprocess.run(command, cwd=whole, capture_output=True, text=True, env=environment)
            if run.returncode:
                sys.exit("the undisturbed run failed:\n" + (run.stdout + run.stderr)[-4000:])
            log.begin(digests(whole / f"results/{name}"), time.monotonic() - began)
            print(f"undisturbed, without Slurm: {log.seconds / 60:.1f} min", flush=True)
            shutil.rmtree(whole)
        kinds = (*KINDS, *(SLURM_KINDS if up else ()), *(ROOT_KINDS if mounted and not up else ()))
        while (left := given.moments - len(log.moments)) > 0 and time.monotonic() < until:
            began, chance = time.monotonic(), random.Random(f"{given.seed} {len(log.runs)}")
            disturbed = Disturbed(work, partial(copy, source), arguments, f"results/{name}", chance=chance, kinds=kinds,
                              within=given.within or log.seconds / 30, after_jobs=0 if given.students else 2 / 3,
                              cluster=up, says=log.add)  # fmt: skip
            record = disturbed.run(left, log.expected or {}, until)
            log.add({**record, "minutes": round((time.monotonic() - began) / 60, 1)})
            if record["failed"] or record["hung"]:
                print(disturbed.output.read_text(errors="replace")[-6000:])
    print(log.summary())
    return int(log.bad())


if __name__ == "__main__":
    sys.exit(main())
