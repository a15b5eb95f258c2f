"""One shard of AudioSet's audio: local copies first, then downloads, then a store and a manifest, each whole."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np

from framekd import config
from framekd.acquire.journal import Journal
from framekd.acquire.sources import Source, open_sources
from framekd.audio import DecodeError, declared_seconds, decode, fetch_span
from framekd.config import UserError
from framekd.download import Fetched, Fetcher, FetchFailed, Remote
from framekd.manifest import Clip, Entry, State, read_clips, retryable, write_manifest
from framekd.store import SAMPLE_RATE, StoredClip, digest, write_shard

LONGEST_WAIT = 900.0
"""A host that asks for a longer pause than this (seconds) stops the shard."""
MARGIN = 0.1  # seconds by which media may end before what their header says


class RateLimited(UserError):
    """The host wants a pause, and the user has to wait: what came is kept, and the same command goes on from there."""


class Queue:
    """Videos that wait for a download, and the pace that all workers of a shard keep."""

    def __init__(self, groups: Sequence[list[Clip]], settings: config.Download) -> None:
        self.settings = settings
        self.waiting: deque[tuple[list[Clip], int]] = deque((group, 0) for group in groups)
        self.stopped = ""
        self._not_before = 0.0
        self._limits = 0
        self._lock = threading.Lock()

    def take(self) -> tuple[list[Clip], int] | None:
        """The next video and how often it was tried; None if there is none or the shard has stopped."""
        while not self.stopped:
            with self._lock:
                if not self.waiting:
                    return None
                wait = self._not_before - time.monotonic()
                if wait <= 0:
                    return self.waiting.popleft()
            time.sleep(min(wait, 1.0))
        return None

    def failed(self, group: list[Clip], tried: int, failure: FetchFailed) -> bool:
        """Whether the video is queued again after a failure, behind the others."""
        with self._lock:
            limited = failure.state in (State.RATE_LIMITED, State.BOT_CHECK)
            self._limits = self._limits + 1 if limited else 0
            again = failure.state in (State.RATE_LIMITED, State.NETWORK) and tried + 1 < self.settings.retries
            pause = failure.retry_after
            if pause is None:
                pause = min(LONGEST_WAIT, max(self.settings.pause_seconds, 0.05) * 2.0**tried)
            if limited and self.waiting and any(n == 0 for _, n in self.waiting):
                if self._limits >= self.settings.max_rate_limits:
                    self.stopped = f"{self._limits} answers in a row said so ({failure.reason})"
                elif pause > LONGEST_WAIT:
                    self.stopped = f"it asks for a pause of {pause:.0f} s"
            if limited or failure.retry_after is not None or (again and not self.waiting):
                self._not_before = max(self._not_before, time.monotonic() + min(pause, LONGEST_WAIT))
            if again:
                self.waiting.append((group, tried + 1))
            return again

    def succeeded(self) -> None:
        """A download worked: the host is no longer limiting."""
        with self._lock:
            self._limits = 0


class _Job:
    """The parts of a shard's work that its threads share."""

    def __init__(
        self, journal: Journal, audioset: config.AudioSet, progress: Callable[[int, int], None] | None
    ) -> None:
        self.journal, self.audioset, self.progress = journal, audioset, progress
        self.total = 0
        self.done = 0
        self._lock = threading.Lock()

    def record(
        self, clip: Clip, state: State, *, reason: str = "", samples: np.ndarray | None = None, source: str = ""
    ) -> None:
        """Write a clip's fate into the journal and tell the progress."""
        there = (0.0, "") if samples is None else (round(len(samples) / SAMPLE_RATE, 4), digest(samples))
        self.journal.record(Entry(clip.clip_id, clip.splits, state, reason, *there, source), samples)
        with self._lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)

    def store(self, clip: Clip, samples: np.ndarray, source: str) -> None:
        """Keep a clip that came, unless hardly anything of it did."""
        wanted = (clip.end_ms - clip.start_ms) / 1000
        seconds = len(samples) / SAMPLE_RATE
        if seconds < min(1.0, wanted / 2):
            reason = f"{seconds:.2f} s of {wanted:.2f} s are there"
            self.record(clip, State.TOO_SHORT, reason=reason, source=source)
        else:
            self.record(clip, State.OK, samples=samples, source=source)

    def local(self, clip: Clip, sources: list[Source]) -> bool:
        """Take the clip from the first local source that has it whole; False if none has."""
        for source in sources:
            try:
                samples = source.read(clip)
            except DecodeError as error:
                self.journal.entries[clip.clip_id] = Entry(
                    clip.clip_id, clip.splits, State.CORRUPT, str(error), source=source.name
                )
                continue
            if samples is not None and len(samples) >= SAMPLE_RATE * min(1.0, (clip.end_ms - clip.start_ms) / 2000):
                self.store(clip, samples, source.name)
                return True
        return False

    def cut(self, group: list[Clip], fetched: Fetched) -> None:
        """Cut the clips of a video out of what was fetched, and record them all or none (FetchFailed)."""
        cuts = []
        for clip in group:
            seconds = (clip.end_ms - clip.start_ms) / 1000
            begin = clip.start_ms / 1000 - fetched.begin
            try:
                samples = decode(fetched.path, begin, seconds)
            except DecodeError as error:
                raise _undecodable(fetched, error) from None
            if len(samples) < SAMPLE_RATE * (seconds - MARGIN):
                declared = declared_seconds(fetched.path)
                reached = begin + len(samples) / SAMPLE_RATE
                if len(samples) and declared is not None and min(declared, begin + seconds) > reached + MARGIN:
                    raise FetchFailed(State.NETWORK, f"truncated: ends at {reached:.1f} s of {declared:.1f} s")
            cuts.append(samples)
        for clip, samples in zip(group, cuts):
            self.store(clip, samples, fetched.source)


def _undecodable(fetched: Fetched, error: DecodeError) -> FetchFailed:
    """What it means that what came cannot be decoded."""
    with fetched.path.open("rb") as file:
        head = file.read(8192).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        if any(word in head for word in (b"captcha", b"not a bot", b"unusual traffic")):
            return FetchFailed(State.BOT_CHECK, "a web page that asks for a person")
        return FetchFailed(State.CORRUPT, "a web page instead of media")
    if not fetched.whole:
        return FetchFailed(State.NETWORK, "cannot be decoded, and may be truncated: its length was not announced")
    return FetchFailed(State.CORRUPT, str(error).replace(str(fetched.path), "media"))


def _download(job: _Job, queue: Queue, fetcher: Fetcher) -> None:
    """One worker: until no video is left, or the shard has stopped."""
    settings = job.audioset.download
    while (taken := queue.take()) is not None:
        group, tried = taken
        try:
            job.cut(group, fetcher.fetch(group[0].ytid, span=_span(group), take=_take if settings.sections else None))
            queue.succeeded()
        except FetchFailed as failure:
            if not queue.failed(group, tried, failure):
                for clip in group:
                    job.record(clip, failure.state, reason=failure.reason, source=fetcher.source)
        if settings.pause_seconds and queue.waiting:
            time.sleep(settings.pause_seconds)


def _span(group: list[Clip]) -> tuple[float, float] | None:
    """What of a video its clips need, with a second on both sides."""
    begin, end = min(c.start_ms for c in group) / 1000 - 1, max(c.end_ms for c in group) / 1000 + 1
    return max(0.0, begin), end


def _take(remote: Remote, span: tuple[float, float], target: Path) -> bool:
    return fetch_span(remote.url, span, target, headers=remote.headers, proxy=remote.proxy, timeout=remote.timeout)


def _by_video(clips: Sequence[Clip]) -> list[list[Clip]]:
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.ytid, []).append(clip)
    return list(groups.values())


def _in_threads(work: Callable, items: Sequence, workers: int) -> list:
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return list(pool.map(work, items))


def _acquire(job: _Job, clips: Sequence[Clip], work: Path) -> None:
    """Bring every clip that is not there, as far as sources, host and settings allow."""
    audioset, known = job.audioset, job.journal.entries
    missing = [c for c in clips if c.clip_id not in known or known[c.clip_id].state is not State.OK]
    job.total, job.done = len(clips), len(clips) - len(missing)
    sources = open_sources(audioset.folders, audioset.hdf5) if missing else []
    if sources:
        found = _in_threads(lambda clip: job.local(clip, sources), missing, audioset.download.workers)
        missing = [clip for clip, there in zip(missing, found) if not there]
    fresh = [c for c in missing if c.clip_id not in known or _again(known[c.clip_id], audioset.download)]
    if not audioset.download.enabled:
        for clip in fresh:
            if clip.clip_id not in known or not _local_fault(known[clip.clip_id]):
                job.record(clip, State.MISSING, reason="in no local source, and downloading is off")
        return
    queue = Queue(_by_video(fresh), audioset.download)
    if not queue.waiting:
        return
    fetcher = Fetcher(audioset.download, work / "fetching")
    workers = min(audioset.download.workers, len(queue.waiting))
    _in_threads(lambda _: _download(job, queue, fetcher), range(workers), workers)
    shutil.rmtree(work / "fetching", ignore_errors=True)
    if queue.stopped:
        left = sum(len(group) for group, _ in queue.waiting)
        raise RateLimited(
            f"{fetcher.source} limits the rate: {queue.stopped}; {len(clips) - left} of {len(clips)} clips are settled "
            "and kept. Run the same command again in an hour or more; it goes on from here"
        )


def _local_fault(entry: Entry) -> bool:
    return entry.state is State.CORRUPT and entry.source in ("folder", "hdf5", "store")


def _again(entry: Entry, settings: config.Download) -> bool:
    """Whether a download may change the state: by itself, or because the user has now given cookies or a proxy."""
    opened = entry.state in (State.AGE, State.PRIVATE) and bool(settings.cookies)
    moved = entry.state is State.GEO and bool(settings.proxy)
    return retryable(entry.state) or _local_fault(entry) or opened or moved


def acquire_shard(
    clips_table: str | Path,
    shard: int,
    audioset: config.AudioSet,
    store: str | Path,
    manifest: str | Path,
    *,
    url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Acquire one shard's clips; returns clips per state.

    A kill at any moment loses at most the clips in hand: the same call goes on, and the finished store is the same to
    the byte. A later call tries again only what another try may change. Clips that did not come are in the manifest
    with the reason; they are never an error.

    Args:
        clips_table: from plan_clips.
        store, manifest: outputs, written aside and put in place whole. A working folder lies beside the store (.work).
        url: an address template in place of audioset.download.url.
        progress: called with (settled clips, all clips).
    Raises:
        RateLimited: the host stopped the shard; nothing is lost.
        UserError: a mistake in the configuration, or another process at work on this shard.
    """
    store, manifest = Path(store), Path(manifest)
    if url is not None:
        audioset = audioset.model_copy(update={"download": audioset.download.model_copy(update={"url": url})})
    clips = read_clips(clips_table, shard=shard)
    work = store.parent / ".work" / store.stem
    work.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{store}: another process is acquiring this shard; wait for it, or end it") from None
    with lock:
        for output in (store, manifest):  # what a killed process had half written
            for stale in output.parent.glob(f".{output.name}.*.tmp"):
                stale.unlink()
        journal = Journal(work, [(store, manifest)])
        job = _Job(journal, audioset, progress)
        _acquire(job, clips, work)
        entries = [
            Entry(c.clip_id, c.splits, e.state, e.reason, e.seconds, e.sha256, e.source)
            for c in clips
            for e in [journal.entries[c.clip_id]]
        ]
        here = sorted((c for c, e in zip(clips, entries) if e.state is State.OK), key=lambda c: c.clip_id)
        write_shard(
            store,
            (
                StoredClip(c.clip_id, c.start_ms, journal.samples(c.clip_id), journal.entries[c.clip_id].source)
                for c in here
            ),
            encoding=audioset.encoding,
        )
        write_manifest(manifest, entries)
        journal.finish(store, manifest)
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.state.value] = counts.get(entry.state.value, 0) + 1
    return counts
