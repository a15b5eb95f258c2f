"""Several processes that train one model: the GPUs of a node, or (in tests) CPU cores.

Every process draws the same batch and the same decisions from (seed, step). It reads the clips of its own rows of the
batch (and those that are mixed into them) and computes these rows: front end, forward and backward pass. Spectrograms
and labels are gathered before they are augmented, since mixup pairs clips of different processes.
DistributedDataParallel averages the gradients. So two processes take the steps of one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framekd.config import UserError
from framekd.data import Batch
from framekd.train.state import STOPPED, Diverged, Stopped

PATIENCE = 30.0
"""Seconds that processes get to end by themselves after one of them has failed."""
_REPORTED: tuple[type[BaseException], ...] = (Stopped, Diverged, UserError, FileNotFoundError)
"""Exceptions that a process reports by their message, the more serious later."""


class World:
    """This process among those that train together. Without torch.distributed, or `alone`, it is the only one."""

    def __init__(self, *, alone: bool = False) -> None:
        self.active = not alone and dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if self.active else 1
        self.rank = dist.get_rank() if self.active else 0
        # Small host values go over gloo: over NCCL they would wait for the work that is queued on the GPU.
        self._host = dist.new_group(backend="gloo") if self.size > 1 else None

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def rows(self, size: int) -> slice:
        """The rows of a batch of `size` clips that this process computes. UserError if a process has none."""
        each = -(-size // self.size)
        if each * (self.size - 1) >= size:
            raise UserError(f"a batch of {size} clips is too small for {self.size} processes; use fewer, or more clips")
        return slice(self.rank * each, min(size, (self.rank + 1) * each))

    def gather(self, part: Tensor, size: int) -> Tensor:
        """Concatenate the rows of all processes, in order; `size` is their number."""
        if self.size == 1:
            return part
        each = -(-size // self.size)
        padded = part.new_zeros(each, *part.shape[1:])
        padded[: len(part)] = part
        whole = part.new_empty(self.size * each, *part.shape[1:])
        dist.all_gather_into_tensor(whole, padded)
        return whole[:size]

    def whole(self, batch: Batch) -> Batch:
        """The batch with the labels of all processes' rows; its waveforms stay those of the own rows."""
        return batch if self.size == 1 else batch.whole(lambda part: self.gather(part, len(batch)))

    def max(self, value: int) -> int:
        """The largest value over processes."""
        if self.size == 1:
            return value
        largest = torch.tensor([value])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._host)
        return int(largest)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def sum(self, value: float) -> float:
        """The sum over processes."""
        if self.size == 1:
            return value
        out = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(out, group=self._host)
        return float(out)

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host)
        return box[0]

    def distribute(self, call: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `call` so that its gradients are averaged over processes."""
        if self.size == 1:
            return call
        # A loss on frames never reaches the clip head, and layerdrop skips layers: unused parameters are normal.
        return nn.parallel.DistributedDataParallel(
            call,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=True,
            broadcast_buffers=False,
        )

    def synchronised(self, distributed: nn.Module, now: bool) -> AbstractContextManager:
        """The context of a backward pass: gradients are exchanged only if `now` (the last micro-batch of a step)."""
        return nullcontext() if now or self.size == 1 else distributed.no_sync()  # type: ignore[operator]


def is_main() -> bool:
    """Whether this process writes files: the first of those that train together, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def launch(function: Callable[..., str | None], *args: Any, processes: int | None = None) -> str | None:
    """Call ``function(*args)`` in processes that train together.

    SIGTERM and SIGUSR1 are forwarded to all processes. When one fails, all are ended.

    Args:
        function: importable by name; its results are files. It returns the name of a signal that came too late to
            stop it, or None.
        args: picklable.
        processes: how many; None is one per visible GPU. A single one is this process.

    Returns:
        The name of a signal that came too late to stop the function, or None.

    Raises:
        Stopped, Diverged, UserError, FileNotFoundError: as one of the processes raised it.
        RuntimeError: for any other failure; the traceback is in the log.
    """
    processes = processes if processes is not None else max(1, torch.cuda.device_count())
    if processes == 1:
        return function(*args)
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    about = (processes, _free_port(), threads, reports, function, args)
    workers = [context.Process(target=_worker, args=(rank, *about)) for rank in range(processes)]
    with _forwarded_to(workers) as received:
        with _hidden_main():
            for worker in workers:
                worker.start()
        _wait(workers)
    if any(worker.exitcode for worker in workers):
        raise _failure(workers, reports, received)
    return next(iter(received), None)


def _worker(
    rank: int, processes: int, port: int, threads: int, reports: Any, function: Callable[..., Any], args: tuple
) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=processes)
        function(*args)
        dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001 (the parent raises it)
        kind = next((kind for kind in _REPORTED if isinstance(error, kind)), None)
        if kind is not None:
            reports.put((_REPORTED.index(kind), str(error)))
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Exit at once: an orderly exit could wait for processes of the group that have ended.
        os._exit(STOPPED if kind is Stopped else 1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide the main module: spawned processes would run it again, and a job's script has no guard."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.__dict__.update(hidden)


@contextmanager
def _forwarded_to(workers: Sequence[Any]) -> Iterator[list[str]]:
    """Forward SIGTERM and SIGUSR1 to `workers`; yields the names of those received."""
    received: list[str] = []

    def forward(number: int, _: Any) -> None:
        received.append(signal.Signals(number).name)
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[Any]) -> None:
    """Wait for all processes; kill those that outlive a failed one by more than `PATIENCE`."""
    running, deadline = {worker.sentinel: worker for worker in workers}, None
    while running:
        ready = wait(list(running), None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not ready:
            for worker in running.values():
                worker.kill()
            deadline = None
        for sentinel in ready:
            worker = running.pop(sentinel)
            worker.join()
            if worker.exitcode not in (0, STOPPED) and deadline is None:
                deadline = time.monotonic() + PATIENCE


def _failure(workers: Sequence[Any], reports: Any, received: Sequence[str]) -> BaseException:
    """Choose which process's exit to report: exceptions before signals, explicit messages before bare exit codes."""
    messages = []
    while not reports.empty():
        messages.append(reports.get())
    if messages:
        kind, text = max(messages, key=lambda report: report[0])
        return _REPORTED[kind](text)
    if received:
        return Stopped(f"{received[0]} came before the training had begun")
    codes = ", ".join(str(worker.exitcode) for worker in workers)
    return RuntimeError(f"processes that train together ended with exit codes {codes}; the log above has their errors")
