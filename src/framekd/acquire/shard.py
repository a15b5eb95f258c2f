"""One shard of AudioSet's audio: local copies, then downloads, then the store and the manifest."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np

from framekd import config
from framekd.acquire.journal import Journal
from framekd.acquire.sources import Source, open_sources
from framekd.audio import DecodeError, declared_seconds, decode, fetch_span
from framekd.config import UserError
from framekd.download import Fetched, Fetcher, FetchFailed, Remote
from framekd.files import disk_full, remove_partial
from framekd.manifest import Clip, Entry, State, read_clips, retryable, write_manifest
from framekd.store import StoredClip, digest, write_shard
from framekd.units import SAMPLE_RATE

LONGEST_WAIT = 900.0
"""If the host asks for a longer pause than this (seconds), the shard stops."""
MARGIN = 0.1  # seconds by which media may be shorter than their header states


class RateLimited(UserError):
    """The host limits the rate of requests. What came is kept; the same command continues from there."""


class Queue:
    """Videos that wait for a download, and the pauses that all workers of a shard observe."""

    def __init__(self, groups: Sequence[list[Clip]], settings: config.Download) -> None:
        self.settings = settings
        self.waiting: deque[tuple[list[Clip], int]] = deque((group, 0) for group in groups)
        self.stopped = ""
        self._not_before = 0.0
        self._limits = 0
        self._lock = threading.Lock()

    def take(self) -> tuple[list[Clip], int] | None:
        """The next video and its number of failed attempts; None if there is none or the shard has stopped."""
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
        """Note a failure; returns whether the video was put at the end of the queue again."""
        with self._lock:
            limited = failure.state in (State.RATE_LIMITED, State.BOT_CHECK)
            self._limits = self._limits + 1 if limited else 0
            again = failure.state in (State.RATE_LIMITED, State.NETWORK) and tried + 1 < self.settings.retries
            pause = failure.retry_after
            if pause is None:
                pause = min(LONGEST_WAIT, max(self.settings.pause_seconds, 0.05) * 2.0**tried)
            if limited and self.waiting and any(n == 0 for _, n in self.waiting):
                if self._limits >= self.settings.max_rate_limits:
                    self.stopped = f"{self._limits} answers in a row were refusals ({failure.reason})"
                elif pause > LONGEST_WAIT:
                    self.stopped = f"it asks for a pause of {pause:.0f} s"
            if limited or failure.retry_after is not None or (again and not self.waiting):
                self._not_before = max(self._not_before, time.monotonic() + min(pause, LONGEST_WAIT))
            if again:
                self.waiting.append((group, tried + 1))
            return again

    def succeeded(self) -> None:
        """Note a success: the host does not limit the rate now."""
        with self._lock:
            self._limits = 0


class _Job:
    """What the threads of a shard share."""

    def __init__(self, journal: Journal, progress: Callable[[int, int], None] | None) -> None:
        self.journal, self.progress = journal, progress
        self.total = 0
        self.done = 0
        self._lock = threading.Lock()

    def record(
        self, clip: Clip, state: State, *, reason: str = "", samples: np.ndarray | None = None, source: str = ""
    ) -> None:
        """Write what became of a clip to the journal and report the progress."""
        length_and_sum = (0.0, "") if samples is None else (round(len(samples) / SAMPLE_RATE, 4), digest(samples))
        self.journal.record(Entry(clip.clip_id, clip.splits, state, reason, *length_and_sum, source), samples)
        with self._lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)

    def store(self, clip: Clip, samples: np.ndarray, source: str) -> None:
        """Keep a clip; less than 1 s of it (or half of a shorter clip) counts as too short."""
        wanted = (clip.end_ms - clip.start_ms) / 1000
        seconds = len(samples) / SAMPLE_RATE
        if seconds < min(1.0, wanted / 2):
            reason = f"{seconds:.2f} s of {wanted:.2f} s are there"
            self.record(clip, State.TOO_SHORT, reason=reason, source=source)
        else:
            self.record(clip, State.OK, samples=samples, source=source)

    def local(self, clip: Clip, sources: list[Source]) -> bool:
        """Take the clip from the first local source that has it; False if none has."""
        for source in sources:
            try:
                samples = source.read(clip)
            except (DecodeError, OSError, ValueError, RuntimeError) as error:  # one bad file must not stop the others
                if disk_full(error):
                    raise
                self.journal.entries[clip.clip_id] = Entry(
                    clip.clip_id, clip.splits, State.CORRUPT, str(error), source=source.name
                )
                continue
            if samples is not None and len(samples) >= SAMPLE_RATE * min(1.0, (clip.end_ms - clip.start_ms) / 2000):
                self.store(clip, samples, source.name)
                return True
        return False

    def cut(self, group: list[Clip], fetched: Fetched) -> None:
        """Cut the clips of a video out of what was fetched and record them.

        Raises:
            FetchFailed: one of them cannot be cut; none is recorded.
        """
        cuts = []
        for clip in group:
            seconds = (clip.end_ms - clip.start_ms) / 1000
            begin = clip.start_ms / 1000 - fetched.begin
            try:
                samples = decode(fetched.path, begin, seconds)
            except DecodeError as error:
                raise _undecodable(fetched, error) from None
            except ValueError as error:  # a label file may ask for any time
                raise FetchFailed(State.CORRUPT, str(error)) from None
            if len(samples) < SAMPLE_RATE * (seconds - MARGIN):
                declared = declared_seconds(fetched.path)
                reached = begin + len(samples) / SAMPLE_RATE
                if len(samples) and declared is not None and min(declared, begin + seconds) > reached + MARGIN:
                    raise FetchFailed(State.NETWORK, f"truncated: ends at {reached:.1f} s of {declared:.1f} s")
            cuts.append(samples)
        for clip, samples in zip(group, cuts):
            self.store(clip, samples, fetched.source)


def _undecodable(fetched: Fetched, error: DecodeError) -> FetchFailed:
    """Why a fetched file cannot be decoded: a web page, a truncated file or no audio."""
    with fetched.path.open("rb") as file:
        head = file.read(8192).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        if any(word in head for word in (b"captcha", b"not a bot", b"unusual traffic")):
            return FetchFailed(State.BOT_CHECK, "a web page that asks for a person")
        return FetchFailed(State.CORRUPT, "a web page instead of media")
    if not fetched.whole:
        return FetchFailed(State.NETWORK, "cannot be decoded, and may be truncated: its length was not announced")
    return FetchFailed(State.CORRUPT, str(error).replace(str(fetched.path), "media"))


def _download(job: _Job, queue: Queue, fetcher: Fetcher, settings: config.Download) -> None:
    """One worker: downloads videos until none is left or the shard has stopped."""
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
    """The seconds of a video that its clips need, with a margin of one second on both sides."""
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


def _acquire(
    job: _Job,
    clips: Sequence[Clip],
    work: Path,
    *,
    folders: Sequence[str],
    hdf5: Sequence[str],
    download: config.Download,
) -> None:
    """Get every clip that is not in the journal yet: from local sources, then by download."""
    known = job.journal.entries
    missing = [c for c in clips if c.clip_id not in known or known[c.clip_id].state is not State.OK]
    job.total, job.done = len(clips), len(clips) - len(missing)
    sources = open_sources(folders, hdf5) if missing else []
    if sources:
        found = _in_threads(lambda clip: job.local(clip, sources), missing, download.workers)
        missing = [clip for clip, taken in zip(missing, found) if not taken]
    fresh = [c for c in missing if c.clip_id not in known or _again(known[c.clip_id], download)]
    if not download.enabled:
        for clip in fresh:
            if clip.clip_id not in known or not _local_fault(known[clip.clip_id]):
                job.record(clip, State.MISSING, reason="in no local source, and downloading is off")
        return
    queue = Queue(_by_video(fresh), download)
    if not queue.waiting:
        return
    fetcher = Fetcher(download, work / "fetching")
    workers = min(download.workers, len(queue.waiting))
    _in_threads(lambda _: _download(job, queue, fetcher, download), range(workers), workers)
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
    """Whether a download may succeed now: the state may pass, or the user has since configured cookies or a proxy."""
    opened = entry.state in (State.AGE, State.PRIVATE) and bool(settings.cookies)
    moved = entry.state is State.GEO and bool(settings.proxy)
    return retryable(entry.state) or _local_fault(entry) or opened or moved


def acquire_shard(
    clips: str | Path,
    shard: int,
    store: str | Path,
    manifest: str | Path,
    *,
    folders: Sequence[str],
    hdf5: Sequence[str],
    encoding: str,
    download: config.Download,
    url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Acquire the audio of one shard.

    A killed call loses only the clips that it was working on: the same call continues, and the finished store has the
    same bytes. A later call tries again only the clips that another attempt may get. Clips that cannot be had are
    listed in the manifest with the reason; they are no error.

    Args:
        clips: table of wanted clips, from plan_clips.
        shard: number of the shard.
        store, manifest: files to write, each whole or not at all. The working folder .work is beside the store.
        folders, hdf5: local sources of audio, searched before any download.
        encoding: "pcm" or "flac".
        download: settings of the download.
        url: address template that replaces download.url.
        progress: called with (settled clips, all clips).
    Returns:
        Clips per state.
    Raises:
        RateLimited: the host stopped the shard; nothing is lost.
        UserError: a source does not exist, or another process works on this shard.
    """
    store, manifest = Path(store), Path(manifest)
    if url is not None:
        download = download.model_copy(update={"url": url})
    wanted = read_clips(clips, shard=shard)
    work = store.parent / ".work" / store.stem
    work.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(work / "lock")
    try:
        locked = lock.acquire(timeout=2)  # a child of a killed process may hold it for a moment
    except filelock.Timeout:
        raise UserError(f"{store}: another process is acquiring this shard; wait for it, or end it") from None
    with locked:
        for output in (store, manifest, work / "finished.h5", work / "finished.tsv"):
            remove_partial(output)
        journal = Journal(work, (store, manifest))
        _acquire(_Job(journal, progress), wanted, work, folders=folders, hdf5=hdf5, download=download)
        entries = [replace(journal.entries[clip.clip_id], splits=clip.splits) for clip in wanted]
        available = sorted((c for c, e in zip(wanted, entries) if e.state is State.OK), key=lambda c: c.clip_id)
        stored = (
            StoredClip(c.clip_id, c.start_ms, journal.samples(c.clip_id), journal.entries[c.clip_id].source)
            for c in available
        )
        write_shard(store, stored, encoding=encoding)
        write_manifest(manifest, entries)
        journal.finish(store, manifest)
    return dict(Counter(entry.state.value for entry in entries))
