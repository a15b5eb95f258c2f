"""Debian's Slurm on this machine, for tests: two nodes with two fake GPUs each, loopback only, and gone afterwards.

    python tests/cluster/slurm_here.py COMMAND…    runs a command while it is up

It needs root, because slurm.conf has to be in /etc/slurm: the executor plugin removes SLURM_CONF from the environment.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ETC = Path("/etc/slurm")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
MARK = "FRAMEKD_TEST_CLUSTER"
"""In the environment of everything that the cluster starts: so it is found again when the cluster stops."""
OURS = "# written by tests/cluster"
NODES = ("d1", "d2")

CONF = """{ours}
ClusterName=framekd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d1_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=8
MinJobAge=300
OverTimeLimit=0
ReturnToService=2
InactiveLimit=0
SlurmdTimeout=60
MailProg=/bin/true
NodeName=d1 NodeAddr=127.0.0.1 NodeHostname={host} Port={d1_port} CPUs=16 RealMemory=400000 Gres=gpu:a100:2
NodeName=d2 NodeAddr=127.0.0.1 NodeHostname={host} Port={d2_port} CPUs=16 RealMemory=400000 Gres=gpu:a100:2
PartitionName=main Nodes=d1,d2 Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=cpu Nodes=d1,d2 MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=spare Nodes=d1,d2 MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=urgent Nodes=d1,d2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def install() -> str | None:
    """Install Debian's packages if they are missing; why there can be no cluster here, or None."""
    if os.geteuid() != 0:
        return "a test cluster needs root (slurm.conf has to be in /etc/slurm)"
    conf = ETC / "slurm.conf"
    if conf.exists() and OURS not in conf.read_text(errors="replace"):
        return "/etc/slurm/slurm.conf is that of a real cluster"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(missing)} missing; apt-get install slurm-wlm munge" if missing else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 60.0, every: float = 0.2) -> None:
    """Wait until `ready()`; TimeoutError that names `what` otherwise."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds:g} s")
        time.sleep(every)


class Cluster:
    """A running cluster; :func:`cluster` starts and stops one."""

    def __init__(self, root: Path) -> None:
        self.root, self.host = root, socket.gethostname().split(".")[0]
        self.env = {**os.environ, MARK: str(root)}
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self.root / name).mkdir()
        ports = {"ctld_port": _free_port(), "d1_port": _free_port(), "d2_port": _free_port()}
        ETC.mkdir(parents=True, exist_ok=True)
        (ETC / "slurm.conf").write_text(CONF.format(ours=OURS, host=self.host, root=self.root, **ports))
        lines = [OURS]
        for node in NODES:
            for i in range(2):
                device = self.root / f"gpu{i}.{node}"
                os.mknod(device, 0o020666, os.makedev(1, 3))
                lines.append(f"NodeName={node} Name=gpu Type=a100 File={device}")
        (ETC / "gres.conf").write_text("\n".join(lines) + "\n")
        (ETC / "cgroup.conf").write_text(OURS + "\n")
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {f"{kind}-file": self.root / f"munge.{kind}" for kind in ("key", "log", "pid", "seed")}
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.root}/munge.socket",
            *(f"--{name}={path}" for name, path in files.items()),
        )  # fmt: skip
        wait_for("munge", (self.root / "munge.socket").exists, 10)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_for("the cluster", lambda: self.run("sinfo", "-hN", "-o", "%T").stdout.split().count("idle") >= 8, 30)

    def start_controller(self, *options: str) -> None:
        self._daemon("slurmctld", "-D", *options, name="slurmctld")

    def stop_controller(self) -> None:
        self.daemons["slurmctld"].terminate()
        self.daemons["slurmctld"].wait(30)

    def forget(self) -> None:
        """Make Slurm forget all its jobs."""
        self.stop_controller()
        self.start_controller("-c")
        wait_for("Slurm", lambda: "idle" in self.run("sinfo", "-hN", "-o", "%T").stdout, 60)

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-D", "-N", node, name=node)

    def _daemon(self, program: str, *arguments: str, name: str | None = None) -> None:
        with (self.root / f"{name or program}.out").open("ab") as out:
            self.daemons[name or program] = subprocess.Popen(
                [shutil.which(program) or program, *arguments], stdout=out, stderr=out, env=self.env,
                start_new_session=True,
            )  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run one of Slurm's commands."""
        return subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=60)

    def queue(self) -> dict[str, tuple[str, str, str]]:
        """Jobs that wait or run: id → state, name, comment."""
        lines = self.run("squeue", "-h", "-o", "%i|%T|%j|%k").stdout.splitlines()
        return {(parts := line.split("|"))[0]: (parts[1], parts[2], parts[3]) for line in lines}

    def settle(self) -> None:
        """Cancel what still runs, and wait until nothing does."""
        for job in self.queue():
            self.run("scancel", "--full", job)
        wait_for("the end of all jobs", lambda: not self.queue(), 60)

    def stop(self) -> None:
        """End every process of the cluster, and remove its files."""
        with suppress(TimeoutError, subprocess.SubprocessError):
            self.settle()
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for number in self.processes():
            try:
                os.kill(number, 9)
            except ProcessLookupError:
                continue
        for name in ("slurm.conf", "gres.conf", "cgroup.conf"):
            path = ETC / name
            if path.exists() and OURS in path.read_text():
                path.unlink()

    def processes(self) -> list[int]:
        """Processes that the cluster, or a command in it, started and that still run."""
        mark, found = f"{MARK}={self.root}".encode(), []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    environment = (folder / "environ").read_bytes().split(b"\0")
                    zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                except OSError:
                    continue
                if mark in environment and not zombie:
                    found.append(int(folder.name))
        return found


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster, one at a time on this machine, and leave nothing of it behind."""
    from filelock import FileLock

    with FileLock(Path(tempfile.gettempdir()) / "framekd-test-cluster.lock"):
        root = Path(tempfile.mkdtemp(prefix="framekd-slurm-"))
        root.chmod(0o755)
        here = Cluster(root)
        try:
            here.start()
            yield here
        finally:
            here.stop()
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    if reason := install():
        sys.exit(f"no cluster here: {reason}")
    with cluster() as up:
        sys.exit(subprocess.run(sys.argv[1:], env=up.env).returncode)
