"""Runs that are disturbed at random moments and go on with `framekd resume`: for torture.py and tests/workflow."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SLURM = ("--profile", "slurm", "--framekd-slurm-init-seconds-before-status-checks", "2", "--latency-wait", "20")
KINDS = ("master", "group", "job", "SIGTERM", "write", "clock")
SLURM_KINDS = ("scancel", "requeue")
ROOT_KINDS = ("disk full", "read-only")
HUNG = 1800.0
"""Seconds after the last moment in which a run has to end."""
SET_BACK = 30.0
"""Seconds by which the clock is set back."""
TIMED = re.compile(r"partial|compute")
"""Tables of a run that is not whole, or of how long it took."""


def digests(results: Path) -> dict[str, str]:
    """SHA-256 of what a run must give again: tables, scores, weights, ensembles, audio."""
    kept = ("*.csv", "*.md", "*.tex", "evaluation/**/*.csv", "downstream/**/*.csv", "**/model.safetensors")
    files = {path for pattern in (*kept, "ensembles/*.h5", "data/store/*/*.h5") for path in results.glob(pattern)}
    names = {path.relative_to(results): path for path in files if not TIMED.search(path.name)}
    return {
        str(name): hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(names.items())
        if not any(part.startswith(".") for part in name.parts)
    }


class Disturbed:
    """Runs of one configuration, one after the other in one folder, that are disturbed.

    Args:
        work: where the run and its output are; the file system that is filled.
        prepare: makes the folder of a run, as it is before the run.
        arguments: Snakemake's, with targets.
        results: folder of results in that of the run.
        chance: when and how a run is disturbed.
        kinds: what is done to it.
        within: seconds within which it is done.
        after_jobs: the share of moments that are counted from the end of a job, for runs of many short jobs: one that
            is killed while it starts gets nowhere.
        cluster: the test cluster that jobs go through.
        says: gets a record of every moment.
    """

    def __init__(
        self, work: Path, prepare: Callable[[Path], Any], arguments: Sequence[str], results: str,
        *, chance: random.Random, kinds: Sequence[str] = KINDS, within: float = 40.0, after_jobs: float = 0.0,
        cluster: Any = None, says: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> None:  # fmt: skip
        self.work, self.prepare, self.arguments, self.chance, self.says = work, prepare, arguments, chance, says
        self.kinds, self.within, self.after_jobs, self.cluster = kinds, within, after_jobs, cluster
        self.folder, self.output = (work / "disturbed").resolve(), work / "output.txt"
        self.results = self.folder / results
        self.kept: dict[Path, int] = {}

    def start(self) -> subprocess.Popen:
        through = SLURM if self.cluster else ()
        environment = self.cluster.env if self.cluster else os.environ
        environment = {**environment, "PYTHONPATH": str(self.folder / "src"), "FRAMEKD_STALE_SECONDS": "20"}
        with self.output.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "framekd.cli", "resume", *through, *self.arguments],
                cwd=self.folder, stdout=out, stderr=out, start_new_session=True, env=environment,
            )  # fmt: skip

    def run(self, moments: int, expected: dict[str, str], until: float = float("inf")) -> dict[str, Any]:
        """Disturb one run up to `moments` times, wait for its end and compare it.

        Args:
            moments: how often it may be disturbed.
            expected: the digests of an undisturbed run.
            until: time (monotonic) after which it is not disturbed any more.
        Returns:
            The number of moments; names of files that are wrong, and of finished work that was done again; whether it
            hung, and how often it failed by itself.
        """
        self.prepare(self.folder)
        self.kept, done, failed, hung = {}, 0, 0, False
        try:
            process = self.start()
            while not hung:
                if done < moments and time.monotonic() < until and process.poll() is None:
                    kind = self.chance.choice(self.kinds)
                    if (about := self.disturb(process, kind)) is not None:
                        done, failed = done + 1, 0
                        self.says({"moment": done, "kind": kind, **about, "finished": len(self.kept)})
                    continue
                try:
                    code = process.wait(HUNG)
                except subprocess.TimeoutExpired:
                    hung = True
                    continue
                self.keep()
                # A run that was disturbed may fail, and so may the one after it: of jobs that outlived their master.
                failed += code != 0
                if code == 0 or failed > 4:
                    break
                process = self.start()
            found, now = digests(self.results), self.finished()
            differ = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
            lost = [str(path.relative_to(self.results)) for path, when in self.kept.items() if now.get(path) != when]
            return {"moments": done, "wrong": sorted(differ), "lost": sorted(lost), "hung": hung, "failed": failed > 4}
        finally:
            self.kill(signal.SIGKILL)
            if self.cluster:
                self.cluster.settle()
            shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self) -> dict[Path, int]:
        """When each piece of long work was finished."""
        found = {}
        for path in self.results.rglob(".finished/*/key"):
            with suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
        return found

    def keep(self) -> None:
        """Remember what is finished: it must stay."""
        self.kept = self.finished() | self.kept

    def disturb(self, process: subprocess.Popen, kind: str) -> dict[str, Any] | None:
        """Do one of `KINDS` at a random moment; returns what was running then, or None if nothing could be done."""
        began, ended = time.monotonic(), self.ended()
        if self.after_jobs and self.chance.random() < self.after_jobs:
            while process.poll() is None and self.ended() <= ended and time.monotonic() < began + HUNG:
                time.sleep(0.1)
        before = self.files() if kind == "write" else set()
        began, wait = time.monotonic(), self.chance.uniform(0, self.within)
        while process.poll() is None and time.monotonic() < began + wait:
            time.sleep(0.01 if kind == "write" else 0.1)
            if kind == "write" and time.monotonic() > began + wait / 2 and self.files() - before:
                break
        stages = sorted({stage for pid, line in self.processes() if (stage := self.stage(pid, line))})
        if process.poll() is not None:
            return None
        if kind in ("disk full", "read-only"):
            with self.full() if kind == "disk full" else self.read_only():
                time.sleep(self.chance.uniform(1, 6))
        elif kind in ("scancel", "requeue"):
            if not (jobs := sorted(self.cluster.queue())):
                return None
            self.cluster.run(
                *(("scancel",) if kind == "scancel" else ("scontrol", "requeue")), self.chance.choice(jobs)
            )
        elif kind in ("job", "SIGTERM"):
            if not self.kill(signal.SIGKILL if kind == "job" else signal.SIGTERM, scripts=True, one=True):
                return None
        else:
            if kind == "master":
                self.kill(signal.SIGKILL, masters=True)
            else:
                os.killpg(process.pid, signal.SIGKILL)
                self.kill(signal.SIGKILL)
            process.wait()
        self.keep()
        if kind == "clock":
            self.set_back()
        return {"seconds": round(time.monotonic() - began, 1), "stages": stages}

    def ended(self) -> int:
        """How many jobs have ended and left their record."""
        return sum(1 for _ in (self.results / "logs").rglob("*.json"))

    def files(self) -> set[str]:
        return {str(path) for path in self.results.rglob("*")}

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

    def stage(self, pid: int, line: str) -> str | None:
        """The stage of a job's script: the first folder of its log, or its name before it has one."""
        if (found := re.search(r"\.snakemake/scripts/\w+\.(\w+)\.py", line)) is None:
            return None
        try:
            return (Path(f"/proc/{pid}/fd/1").readlink()).relative_to(self.results / "logs").parts[0]
        except (OSError, ValueError):
            return found[1]

    def kill(self, number: int, *, masters: bool = False, scripts: bool = False, one: bool = False) -> int:
        """Send a signal to processes that work in the folder: all, Snakemake's masters, or the scripts of jobs.

        Returns:
            The number of processes.
        """
        chosen = [
            pid
            for pid, line in self.processes()
            if (not masters or ("--configfile" in line and "--mode" not in line))
            and (not scripts or ".snakemake/scripts/" in line)
        ]
        chosen = [self.chance.choice(chosen)] if one and chosen else chosen
        for pid in chosen:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(chosen)

    def set_back(self) -> None:
        """Set the clock back, as the files show it: what the run has made is from the future.

        A process cannot be given another time of day than the machine has, and the kernel stamps files with its own. So
        the files' times are set forward, and the next start finds what it would find after the clock was set back. Data
        sets keep theirs: what is trained on them is known by their times, which a clock does not change.
        """
        seen, ahead = set(), int(SET_BACK * 1e9)
        for path in self.results.rglob("*"):
            if path.is_relative_to(self.results / "data/miniature"):
                continue
            with suppress(FileNotFoundError):
                about = path.stat(follow_symlinks=False)
                if about.st_ino in seen:  # a second name of a file
                    continue
                seen.add(about.st_ino)
                os.utime(path, ns=(about.st_atime_ns + ahead, about.st_mtime_ns + ahead), follow_symlinks=False)
        self.kept = {path: when + ahead for path, when in self.kept.items()}

    @contextmanager
    def full(self) -> Iterator[None]:
        """The disk is full inside the block."""
        filler = self.work / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        except OSError:
            pass
        try:
            yield
        finally:
            filler.unlink(missing_ok=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """The folder of the results is read-only inside the block: no file can be made or renamed there."""
        # A mount over it, because a file system with files that are open for writing refuses to become read-only.
        self.results.mkdir(parents=True, exist_ok=True)
        for options in (["--bind", str(self.results)], ["-o", "remount,bind,ro"]):
            subprocess.run(["mount", *options, str(self.results)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(self.results)], check=True)
