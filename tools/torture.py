"""A crash matrix: kill a run at random moments, go on with `framekd resume`, and compare it with an undisturbed run.

    python tools/torture.py --moments 100           the small run of the demo's whole graph (tests/workflow/tiny.yaml)
    python tools/torture.py --moments 3 --students  trainings, scores and Table I alone (tests/workflow/students.yaml)
    python tests/cluster/slurm_here.py .venv/bin/python tools/torture.py --moments 30 --slurm    through a real Slurm

It works on a copy of the repository in a temporary folder: of root, a tmpfs, which can be filled and made read-only. A
moment is 0 to `--within` seconds after a start, or the first new file after it. When a run is whole it is compared, and
the next one begins. It prints a line a moment and the figures at the end; the exit code is 1 if anything was
wrong or lost.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "scripts", "config", "profiles", "src", "miniature", "tests/workflow")
CONFIGS = {"tiny": "tests/workflow/tiny.yaml", "students": "tests/workflow/students.yaml"}
TARGETS = {"tiny": ["all"], "students": ["results/students/table1.csv"]}
SLURM = ("--profile", "slurm", "--framekd-slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20")
KINDS = ("master", "group", "job", "SIGTERM", "write")
ROOT_KINDS = ("disk full", "read-only")
HUNG = 1800.0
"""Seconds after which a run that does not end counts as hung."""


def copy(folder: Path) -> Path:
    """The repository without results."""
    for name in PARTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    return folder


class Torture:
    """Runs of one configuration in one folder, disturbed and not."""

    def __init__(self, work: Path, given: argparse.Namespace, chance: random.Random) -> None:
        self.work, self.given, self.chance = work, given, chance
        self.name = "students" if given.students else "tiny"
        self.arguments = ["--configfile", "config/demo.yaml", CONFIGS[self.name], "--cores", "2", "--keep-going"]
        self.folder = work / "disturbed"

    def start(self, folder: Path, *, undisturbed: bool = False) -> subprocess.Popen:
        through = [] if undisturbed or not self.given.slurm else SLURM
        program = ["-m", "snakemake"] if undisturbed else ["-m", "framekd.cli", "resume"]
        with (self.work / "output.txt").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, *program, *through, *self.arguments, "--", *TARGETS[self.name]],
                cwd=folder, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(folder / "src"), "FRAMEKD_STALE_SECONDS": "20"},
            )  # fmt: skip

    def results(self, folder: Path) -> dict[str, str]:
        """Hashes of tables, weights and ensembles."""
        out = folder / f"results/{self.name}"
        files = [*out.glob("*.csv"), *out.rglob("model.safetensors"), *out.glob("ensembles/*.h5")]
        tables = [path for path in files if "partial" not in path.name and ".finished" not in path.parts]
        return {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in tables
            if path.suffix != ".h5" and ".resume" not in path.parts
        }

    def finished(self) -> dict[Path, int]:
        """When each piece of long work was finished."""
        found = (self.folder / f"results/{self.name}").rglob(".finished/*/key")
        return {path: path.stat().st_mtime_ns for path in found}

    def disturb(self, process: subprocess.Popen, kind: str) -> str:
        """Do one of `KINDS` at a random moment; returns where the run was."""
        before = self.files() if kind == "write" else set()
        end = time.monotonic() + self.chance.uniform(0, self.given.within)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005 if kind == "write" else 0.1)
            if kind == "write" and time.monotonic() > end - self.given.within / 2 and self.files() - before:
                break
        if process.poll() is not None:
            return "had ended"
        if kind in ("group", "write"):
            os.killpg(process.pid, signal.SIGKILL)
            self.kill(signal.SIGKILL)
        elif kind == "master":
            os.killpg(process.pid, signal.SIGKILL) if self.given.slurm else self.kill(signal.SIGKILL, masters=True)
        elif kind in ("job", "SIGTERM"):
            self.kill(signal.SIGKILL if kind == "job" else signal.SIGTERM, scripts=True, one=True)
        else:
            with self.full() if kind == "disk full" else self.read_only():
                time.sleep(self.chance.uniform(1, 6))
        return kind

    def files(self) -> set[str]:
        return {str(path) for path in (self.folder / f"results/{self.name}").rglob("*")}

    def processes(self) -> list[tuple[int, str]]:
        """Processes that work in the folder, with their command lines."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "cwd").resolve() == self.folder and int(entry.name) != os.getpid():
                    found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
        return found

    def kill(self, number: int, *, masters: bool = False, scripts: bool = False, one: bool = False) -> None:
        """Send a signal to processes that work in the folder: all, Snakemake's masters, or the scripts of jobs."""
        chosen = [
            pid
            for pid, line in self.processes()
            if (not masters or ("--configfile" in line and "--mode" not in line))
            and (not scripts or ".snakemake/scripts/" in line)
        ]
        for pid in [self.chance.choice(chosen)] if one and chosen else chosen:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    @contextmanager
    def full(self):
        """The disk is full inside the block."""
        filler = self.work / "filler"
        try:
            with filler.open("wb") as file:
                while file.write(bytes(1 << 20)):
                    file.flush()
        except OSError:
            print("the disk is full", flush=True)
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)

    @contextmanager
    def read_only(self):
        """The files of the results cannot be made inside the block (of root, the file system is read-only)."""
        # Files that are open for writing refuse a read-only mount: it then stays as it is, and nothing is disturbed.
        subprocess.run(["mount", "-o", "remount,ro", self.work], capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", self.work], capture_output=True)

    def wait(self, process: subprocess.Popen) -> bool:
        """Whether a run ends by itself, and leaves no process behind."""
        try:
            process.wait(HUNG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False
        return True


@contextmanager
def place(size: str):
    """A temporary folder: of root, a tmpfs of its own."""
    folder = Path(tempfile.mkdtemp(prefix="framekd-torture-"))
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "framekd-torture", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(options, capture_output=True).returncode == 0
    try:
        yield folder, mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder])
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the matrix."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--moments", type=int, default=100, help="how often a run is disturbed")
    out.add_argument("--within", type=float, default=40.0, help="seconds after a start within which it is disturbed")
    out.add_argument("--seed", type=int, default=1)
    out.add_argument("--students", action="store_true", help="the smaller graph")
    out.add_argument("--slurm", action="store_true", help="through Slurm; start it with tests/cluster/slurm_here.py")
    given = out.parse_args()
    began, count = time.monotonic(), Counter[str]()
    with place("3g") as (work, mounted):
        torture = Torture(work, given, random.Random(given.seed))
        whole = copy(work / "undisturbed")
        if torture.start(whole, undisturbed=True).wait() != 0:
            sys.exit("the undisturbed run failed:\n" + (work / "output.txt").read_text(errors="replace")[-4000:])
        expected, done = torture.results(whole), 0
        print(f"undisturbed: {len(expected)} files in {time.monotonic() - began:.0f} s", flush=True)
        shutil.rmtree(whole)
        while done < given.moments:
            copy(torture.folder)
            kept: dict[Path, int] = {}
            while True:
                last = done >= given.moments
                process = torture.start(torture.folder)
                if not last:
                    kind = torture.chance.choice(KINDS + (ROOT_KINDS if mounted and not given.slurm else ()))
                    where = torture.disturb(process, kind)
                    if where != "had ended":
                        done += 1
                        count[kind] += 1
                        print(f"{done:4d} {kind}, {len(torture.finished())} pieces of long work finished", flush=True)
                    if kind in ("master", "group", "write") and where != "had ended":
                        process.wait()
                        kept |= torture.finished()
                        continue
                kept |= torture.finished()
                if not torture.wait(process):
                    count["hung"] += 1
                    torture.kill(signal.SIGKILL)
                    break
                if process.returncode == 0:
                    break
                if last:  # a run that was disturbed may fail once more: its jobs are then whole, or made again
                    count["failed after the last moment"] += 1
                    if count["failed after the last moment"] > 5:
                        print((work / "output.txt").read_text(errors="replace")[-6000:])
                        break
            found, now = torture.results(torture.folder), torture.finished()
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            lost = sorted(str(path) for path, when in kept.items() if now.get(path) != when)
            count["runs compared"] += 1
            count["wrong"] += len(wrong)
            count["lost"] += len(lost)
            print(
                f"compared {len(expected)} files: {len(wrong)} wrong {wrong[:5]}, {len(lost)} lost {lost[:5]}",
                flush=True,
            )
            torture.kill(signal.SIGKILL)
            shutil.rmtree(torture.folder)
    figures = ", ".join(f"{name} {n}" for name, n in sorted(count.items()))
    print(f"moments {done}: {figures}; wrong {count['wrong']}, lost {count['lost']}, hung {count['hung']}; "
          f"{(time.monotonic() - began) / 60:.0f} min")  # fmt: skip
    return int(bool(count["wrong"] or count["lost"] or count["hung"]))


if __name__ == "__main__":
    sys.exit(main())
