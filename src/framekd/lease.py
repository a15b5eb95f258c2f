"""One writer at a time, also across nodes: a file that its holder keeps changing while it works.

Locks of the operating system end with their process, but many shared file systems do not carry them from node to node.
A lease is a file ``NAME.1``, made as one atomic step. Its holder adds a dot every `BEAT` seconds. Others wait. A lease
that has not changed for `STALE` seconds, by the clock of the one who waits, is taken over: by ``NAME.2``, again one
atomic step. The highest number holds. So no clock is compared with another, and two that take over at once cannot both
succeed. A lease is taken over at once if its process has ended on this machine, or if Slurm says that its job has
ended.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framekd import slurm

BEAT = 20.0
STALE = float(os.environ.get("FRAMEKD_STALE_SECONDS", "300"))
RELEASED = "released"
LOST = 75
"""Exit code of a process that finds its lease taken over (EX_TEMPFAIL of sysexits.h: try again)."""


class Lease:
    """A lease named `path`; files ``path.N`` beside it.

    Args:
        path: its name.
        beat: seconds between signs of life.
        stale: seconds without one after which others take over.
    """

    def __init__(self, path: str | Path, *, beat: float = BEAT, stale: float | None = None) -> None:
        self.path, self.beat, self.stale = Path(path), beat, STALE if stale is None else stale
        self.file: Path | None = None
        self._seen: tuple[Any, float] = (None, 0.0)
        self._asked = -1e9
        self._stop = threading.Event()

    # Taking -----------------------------------------------------------------------------------------------------------

    def take(self) -> str | None:
        """Try to take it now; returns None, or who holds it."""
        number, about, beats = self._highest()
        if about is not None and RELEASED not in beats and not self._dead(number, about, len(beats)):
            return holder(about)
        if not self._create(number + 1) or self._highest()[0] != number + 1:
            return "a process that was faster"
        for older in range(number, max(0, number - 3), -1):
            self._name(older).unlink(missing_ok=True)
        self._stop.clear()
        threading.Thread(target=self._live, daemon=True, name="lease").start()
        return None

    def wait(self, says: Callable[[str], None], *, every: float = 5.0) -> None:
        """Wait until it can be taken, and take it.

        Args:
            says: gets a sentence when the wait begins and when the holder changes.
            every: seconds between two looks.
        """
        known = None
        while (who := self.take()) is not None:
            if who != known:
                says(f"{who} works on this already; waiting for it (a dead one is replaced after {self.stale:.0f} s)")
                known = who
            time.sleep(min(every, self.stale / 4))

    def release(self) -> None:
        """Give it back, if it is held."""
        self._stop.set()
        if self.file is not None:
            file, self.file = self.file, None
            try:
                with file.open("a") as stream:
                    stream.write(RELEASED)
            except OSError:  # the folder is gone with all that was in it
                pass

    def lost(self) -> bool:
        """Whether another process has taken it over."""
        file = self.file
        return file is not None and self._highest()[0] > int(file.suffix[1:])

    # Files ------------------------------------------------------------------------------------------------------------

    def _name(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _highest(self) -> tuple[int, dict[str, Any] | None, str]:
        """Number, holder and signs of life of the lease that counts; 0 and None if there is none."""
        try:
            names = [path.name for path in self.path.parent.iterdir()]
        except FileNotFoundError:
            names = []
        found = [re.fullmatch(re.escape(self.path.name) + r"\.(\d+)", name) for name in names]
        number = max((int(match[1]) for match in found if match), default=0)
        if not number:
            return 0, None, ""
        try:
            first, _, beats = self._name(number).read_text(errors="replace").partition("\n")
        except OSError:
            return number, {}, ""
        try:
            about = json.loads(first)
        except ValueError:
            about = {}
        return number, about if isinstance(about, dict) else {}, beats

    def _create(self, number: int) -> bool:
        """Make lease `number`, whole at once; False if another process was first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file, aside = self._name(number), self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        aside.write_text(json.dumps(_me()) + "\n")
        try:
            try:
                os.link(aside, file)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                try:
                    with file.open("x") as stream:
                        stream.write(aside.read_text())
                except FileExistsError:
                    return False
        finally:
            aside.unlink(missing_ok=True)
        self.file = file
        return True

    # Life and death ---------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        file = self.file
        while not self._stop.wait(self.beat):
            if self.file is not file or file is None:
                return
            if self.lost():
                print(
                    f"framekd: {file} was taken over; this process ends, so as not to write beside the other",
                    file=sys.stderr,
                )
                sys.stderr.flush()
                os._exit(LOST)
            try:
                with file.open("r+") as stream:  # never makes the file anew
                    stream.seek(0, os.SEEK_END)
                    stream.write(".")
            except OSError:  # the disk is full, or away for a moment: `stale` is many beats
                continue

    def _dead(self, number: int, about: dict[str, Any], beats: int) -> bool:
        me, now = _me(), time.monotonic()
        if about.get("place") == me["place"]:
            return about.get("pid") != me["pid"] and _started(about.get("pid")) != about.get("started")
        if about.get("job") and about.get("cluster") == me["cluster"]:
            if about["job"] == me["job"]:
                return True  # this very job, before Slurm started it again elsewhere
            if now - self._asked > 30:
                self._asked = now
                state = slurm.state(str(about["job"]))
                if state is not None and (state == "" or state in slurm.ENDED):
                    return True
                if state in ("SUSPENDED", "STOPPED"):
                    self._seen = (None, now)
        if self._seen[0] != (number, beats):
            self._seen = ((number, beats), now)
        return now - self._seen[1] > self.stale


def holder(about: dict[str, Any]) -> str:
    """Who holds a lease, in words."""
    job = f", Slurm job {about['job']}" if about.get("job") else ""
    return f"process {about['pid']} on {about['host']}{job}" if {"pid", "host"} <= about.keys() else "another process"


def _me() -> dict[str, Any]:
    """This process: its machine and container, number and start; and its job."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        place = socket.gethostname()
    return {
        "host": socket.gethostname(),
        "place": place,
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "job": slurm.job_id(),
        "cluster": os.environ.get("SLURM_CLUSTER_NAME"),
    }


def _started(pid: Any) -> str | None:
    """When a process of this machine started, in ticks; None if there is no such process."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, TypeError, ValueError):
        try:
            os.kill(int(pid), 0)
        except (OSError, TypeError, ValueError):
            return None
        return "runs"
    return None if fields[0] in "ZX" else fields[19]
