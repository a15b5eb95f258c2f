"""A host that misbehaves in every way: each clip ends in the right state, nothing hangs, and a second run fetches only
what another try may change. The same table stands in docs/data.md."""

from __future__ import annotations

import functools
import subprocess
import time
from pathlib import Path

import misbehaving_server as host
import pytest

from framekd import config
from framekd.acquire import RateLimited, acquire_shard, shard
from framekd.audio import ffmpeg_path
from framekd.download import Fetcher
from framekd.manifest import RETRYABLE, Clip, Entry, State, read_manifest, write_clips
from framekd.store import Store


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> dict[str, Path]:
    """One 20-s recording in two containers, one of 3 s, and a video without sound."""
    folder = tmp_path_factory.mktemp("media")
    out = {}
    tone = ["-f", "lavfi", "-i", "sine=440:d=20:r=48000"]
    made = {
        "good.webm": [*tone, "-c:a", "libopus", "-b:a", "48k"],
        "good.m4a": [*tone, "-c:a", "aac", "-b:a", "48k"],
        "short.webm": ["-f", "lavfi", "-i", "sine=440:d=3:r=48000", "-c:a", "libopus"],
        "silent.webm": ["-f", "lavfi", "-i", "color=red:s=64x64:d=2:r=5", "-an", "-c:v", "libvpx"],
    }
    for name, arguments in made.items():
        subprocess.run([ffmpeg_path(), "-loglevel", "error", "-y", *arguments, folder / name], check=True)
        out[name] = folder / name
    return out


def video(number: int) -> str:
    return f"_fault-{number:04d}"


def plan(path: Path, videos: list[str], *, start_ms: int = 5000) -> Path:
    clips = [Clip(f"{v}_{start_ms}", v, start_ms, start_ms + 10_000, ("strong_train",), 0) for v in videos]
    write_clips(path, clips)
    return path


def settings(**values) -> config.Download:
    download = dict(pause_seconds=0, sections=False, timeout_seconds=0.6, workers=4, retries=2, max_rate_limits=30)
    return config.Download(**{**download, **values})


def run(folder: Path, table: Path, server: host.MediaServer, download: config.Download) -> dict[str, Entry]:
    outputs = folder / "0000.h5", folder / "0000.manifest.tsv"
    sources = dict(folders=[], hdf5=[], encoding="pcm")
    acquire_shard(table, 0, *outputs, **sources, download=download, url=server.url)
    entries = read_manifest(folder / "0000.manifest.tsv")
    stored = Store([folder / "0000.h5"])
    assert list(stored.verify()) == []
    assert stored.ids == sorted(e.clip_id for e in entries if e.state is State.OK)
    return {e.clip_id.rsplit("_", 1)[0]: e for e in entries}


def faults(media: dict[str, Path]) -> dict[str, tuple]:
    """What the host does → (fault, file behind it, state, words of the reason)."""
    good, m4a = media["good.webm"].read_bytes(), media["good.m4a"].read_bytes()
    broken = bytearray(good)
    broken[: len(broken)] = bytes(b ^ 0x5A for b in broken)
    page = b"<!doctype html><html><body>Video of the day</body></html>" * 50
    person = b"<!doctype html><html><body>Sign in to confirm you're not a bot</body></html>" * 50
    return {
        "nothing wrong": (None, "good.webm", "ok", ""),
        "404": (host.status(404), "good.webm", "gone", "404"),
        "403": (host.status(403), "good.webm", "private", "403"),
        "410": (host.status(410), "good.webm", "gone", "410"),
        "451": (host.status(451), "good.webm", "geo", "451"),
        "429 once, with Retry-After": (host.status(429, times=1, Retry_After="1"), "good.webm", "ok", ""),
        "429 once, without": (host.status(429, times=1), "good.webm", "ok", ""),
        "429 always": (host.status(429), "good.webm", "rate_limited", "429"),
        "503, then success": (host.status(503, times=1), "good.webm", "ok", ""),
        "503 always": (host.status(503), "good.webm", "network", "503"),
        "stalls in the middle": (host.stalled(good, seconds=3), "good.webm", "network", ""),
        "stalls before it answers": (host.stalled(good, seconds=3, before_header=True), "good.webm", "network", ""),
        "hangs up": (host.reset, "good.webm", "network", ""),
        "truncated": (host.truncated(good), "good.webm", "network", ""),
        "truncated once": (host.truncated(good, times=1), "good.webm", "ok", ""),
        "truncated, length not announced": (host.truncated(good, announced=False), "good.webm", "network", "truncated"),
        "truncated beyond decoding, not announced": (
            host.truncated(m4a, "audio/mp4", announced=False),
            "good.m4a",
            "network",
            "truncated",
        ),
        "other content": (host.body(b"just some text, no media " * 99), "good.webm", "corrupt", "decoded"),
        "a web page": (host.body(page, "text/html"), "good.webm", "corrupt", "web page"),
        "a web page called audio": (host.body(page), "good.webm", "corrupt", "web page"),
        "a page that asks for a person": (host.body(person), "good.webm", "bot_check", "person"),
        "zero bytes": (host.body(b""), "good.webm", "network", "empty"),
        "redirect loop": (host.redirect_loop, "good.webm", "network", "redirect"),
        "too short": (None, "short.webm", "too_short", "0.00 s of 10.00 s"),
        "no sound": (None, "silent.webm", "corrupt", "decoded"),
        "a corrupt container": (host.body(bytes(broken)), "good.webm", "corrupt", "decoded"),
    }


def test_every_fault_ends_in_its_state(media, tmp_path):
    table = faults(media)
    videos = {name: video(i) for i, name in enumerate(table)}
    clips = plan(tmp_path / "clips.tsv", list(videos.values()))
    server = host.MediaServer(
        {videos[name]: media[row[1]] for name, row in table.items()},
        {videos[name]: row[0] for name, row in table.items() if row[0] is not None},
    )
    began = time.monotonic()
    with server:
        found = run(tmp_path, clips, server, settings())
        first = server.requests.copy()
        wrong = {
            name: (found[videos[name]].state.value, found[videos[name]].reason, "expected", state)
            for name, (_, _, state, words) in table.items()
            if found[videos[name]].state != state or words not in found[videos[name]].reason
        }
        assert wrong == {}
        assert time.monotonic() - began < 30
        # A second run asks again for what may change and for nothing else; the host is well by now.
        server.faults = {}
        again = run(tmp_path, clips, server, settings())
    asked = {name for name, v in videos.items() if server.requests[v] > first[v]}
    assert asked == {name for name, row in table.items() if State(row[2]) in RETRYABLE}
    assert all(again[videos[name]].state == ("ok" if name in asked else row[2]) for name, row in table.items())


def test_a_rate_limit_stops_the_shard_and_burns_no_ids(media, tmp_path):
    videos = [video(i) for i in range(12)]
    clips = plan(tmp_path / "clips.tsv", videos)
    server = host.MediaServer(
        {v: media["good.webm"] for v in videos}, {v: host.status(429, Retry_After="0") for v in videos[4:]}
    )
    with server:
        with pytest.raises(
            RateLimited, match=r"limits the rate: 3 answers in a row .* 4 of 12 clips are settled and kept"
        ):
            run(tmp_path, clips, server, settings(workers=1, max_rate_limits=3, retries=3))
        assert not (tmp_path / "0000.h5").exists()
        assert sum(server.requests[v] for v in videos[4:]) == 3
        server.faults = {}
        first = server.requests.copy()
        found = run(tmp_path, clips, server, settings(workers=1))
    assert all(entry.state is State.OK for entry in found.values())
    assert all(server.requests[v] == first[v] for v in videos[:4])


def test_a_long_retry_after_stops_at_once(media, tmp_path):
    videos = [video(i) for i in range(4)]
    clips = plan(tmp_path / "clips.tsv", videos)
    server = host.MediaServer(
        {v: media["good.webm"] for v in videos}, {v: host.status(429, Retry_After="7200") for v in videos}
    )
    began = time.monotonic()
    with server, pytest.raises(RateLimited, match="asks for a pause of 7200 s"):
        run(tmp_path, clips, server, settings(workers=1))
    assert time.monotonic() - began < 5


def test_a_host_that_drips_forever_is_left(media, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "Fetcher", functools.partial(Fetcher, deadline=1.0))
    clips = plan(tmp_path / "clips.tsv", [video(0)])
    drip = host.dripping(media["good.webm"].read_bytes(), pause=0.02)
    server = host.MediaServer({video(0): media["good.webm"]}, {video(0): drip})
    with server:
        found = run(tmp_path, clips, server, settings(retries=1))
    assert found[video(0)].state is State.NETWORK
    assert "slower" in found[video(0)].reason
