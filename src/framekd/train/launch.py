"""Starting the processes that train one model together, and ending with them."""

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
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

from framekd.config import UserError
from framekd.train.state import STOPPED, Diverged, Stopped

PATIENCE = 30.0
"""Seconds that processes are given to end by themselves after one of them has failed."""
_TOLD: tuple[type[BaseException], ...] = (Stopped, Diverged, UserError, FileNotFoundError)


def launch(function: Callable[..., None], *args: Any, processes: int | None = None) -> None:
    """Call ``function(*args)`` in `processes` processes that train together (default: one per visible GPU).

    One process is this one. `function` must be importable by name and `args` be plain data; what it returns is lost:
    results are files. SIGTERM and SIGUSR1 are handed on. What ends one process ends all: :class:`Stopped`,
    :class:`Diverged` and a user's mistake are raised here as they were there, anything else is a RuntimeError.
    """
    processes = processes if processes is not None else max(1, torch.cuda.device_count())
    if processes == 1:
        function(*args)
        return
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    about = (processes, _free_port(), threads, reports, function, args)
    workers = [context.Process(target=_worker, args=(rank, *about)) for rank in range(processes)]
    with _handed_on(workers) as heard:
        with _without_main():
            for worker in workers:
                worker.start()
        _wait(workers)
    if any(worker.exitcode for worker in workers):
        raise _reason(workers, reports, heard)


def _worker(
    rank: int, processes: int, port: int, threads: int, reports: Any, function: Callable[..., None], args: tuple
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=processes)
        function(*args)
        dist.destroy_process_group()
    except BaseException as error:  # noqa: BLE001 (the first process raises it, or says where to look)
        kind = next((kind for kind in _TOLD if isinstance(error, kind)), None)
        if kind is not None:
            reports.put((_TOLD.index(kind), str(error)))
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: what is left of the group could wait for processes that are not there any more.
        os._exit(STOPPED if kind is Stopped else 1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program from the processes that start now: they would run it again, and a job's script has no guard."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: main.__dict__[name] for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.__dict__.update(hidden)


@contextmanager
def _handed_on(workers: Sequence[Any]) -> Iterator[list[str]]:
    """Hand SIGTERM and SIGUSR1 on to `workers`; yields the names of those that came."""
    heard: list[str] = []

    def hand_on(number: int, _: Any) -> None:
        heard.append(signal.Signals(number).name)
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(workers: Sequence[Any]) -> None:
    """Until all have ended; those that outlive a failed one by more than `PATIENCE` are killed."""
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


def _reason(workers: Sequence[Any], reports: Any, heard: Sequence[str]) -> BaseException:
    """Why they did not all end well: a mistake before a stop, and what was told before what was not."""
    told = []
    while not reports.empty():
        told.append(reports.get())
    if told:
        kind, text = max(told, key=lambda report: report[0])
        return _TOLD[kind](text)
    if heard:
        return Stopped(f"{heard[0]} came before the training had begun")
    codes = ", ".join(str(worker.exitcode) for worker in workers)
    return RuntimeError(f"the processes that trained together ended with exit codes {codes}; see above")
