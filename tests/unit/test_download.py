"""The messages of hosts, and the state that each means."""

from __future__ import annotations

import io
import subprocess
from email.message import Message

import misbehaving_server as host
import numpy as np
import pytest
import soundfile
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, UnsupportedError

from framekd import config, download
from framekd.acquire import acquire_shard
from framekd.audio import ffmpeg_path
from framekd.config import UserError
from framekd.download import Fetcher, FetchFailed, classify, retry_after
from framekd.manifest import Clip, State, read_manifest, write_clips
from framekd.store import Store

SAID = {
    "Private video. Sign in if you've been granted access to this video": "private",
    "Join this channel to get access to members-only content like this video": "private",
    "This video requires payment to watch": "private",
    "Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies for the authentication": "bot_check",
    "Sign in to confirm your age. This video may be inappropriate for some users": "age",
    "The uploader has not made this video available in your country": "geo",
    "Video unavailable. This video is not available": "gone",
    "Video unavailable. This video has been removed by the uploader": "gone",
    "Video unavailable. This video is no longer available because the YouTube account has been terminated": "gone",
    "This video has been removed for violating YouTube's Terms of Service": "gone",
    "Video unavailable. This video contains content from X, who has blocked it on copyright grounds": "gone",
    "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by "
    "YouTube for up to an hour": "rate_limited",
    "Unable to download webpage: The read operation timed out": "network",
    "Unable to download API page: [Errno -3] Temporary failure in name resolution": "network",
    "something that nobody has seen before": "network",
}


def error(said: str, cause: Exception | None = None) -> DownloadError:
    inner = ExtractorError(said, video_id="abcdefghijk", ie="youtube", expected=True, cause=cause)
    return DownloadError(f"\x1b[0;31mERROR:\x1b[0m {inner}", (type(inner), inner, None))


@pytest.mark.parametrize(("said", "state"), SAID.items())
def test_what_youtube_says(said, state):
    failure = classify(error(said), youtube=True)
    assert failure.state == state
    assert said[:30] in failure.reason
    assert "\x1b" not in failure.reason
    assert "youtube]" not in failure.reason


def http(status: int, **headers: str) -> HTTPError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return HTTPError(Response(io.BytesIO(b""), "http://host/", message, status=status))


@pytest.mark.parametrize(
    ("status", "state"),
    [
        *((code, "private") for code in (401, 403)),
        *((code, "gone") for code in (400, 404, 410, 416)),
        *((code, "network") for code in (408, 500, 503, 599)),
        (429, "rate_limited"),
        (451, "geo"),
    ],
)
def test_http_answers(status, state):
    assert classify(error("Unable to download webpage", http(status))).state == state


def test_an_expired_media_address_of_youtube_may_be_tried_again():
    assert classify(error("unable to download video data", http(403)), youtube=True).state is State.NETWORK


def test_retry_after_is_read_as_seconds_and_as_a_date(monkeypatch):
    assert classify(error("x", http(429, Retry_After="120"))).retry_after == 120
    monkeypatch.setattr("time.time", lambda: 1445412480 - 90)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == pytest.approx(90)
    monkeypatch.setattr("time.time", lambda: 1445412480 + 90)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_other_errors():
    assert classify(GeoRestrictedError("not here")).state is State.GEO
    assert classify(UnsupportedError("http://x/")).state is State.CORRUPT
    assert classify(error("x", IncompleteRead(partial=3, expected=5))).state is State.NETWORK
    assert classify(OSError("disk")).state is State.NETWORK
    assert classify(FetchFailed(State.AGE, "a")).state is State.AGE


def test_reasons_are_one_short_line():
    assert "\n" not in FetchFailed(State.GONE, "a\nb\tc" * 500).reason
    assert len(FetchFailed(State.GONE, "a\nb\tc" * 500).reason) <= 200


def test_cookies_go_to_the_host_and_nowhere_else(tmp_path):
    """The user's file is used as it is, and neither its content nor its path is in a message."""
    cookies = tmp_path / "secret-cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tsession\tSECRETVALUE\n")
    seen = []

    def look(handler, number: int) -> bool:
        seen.append(handler.headers.get("Cookie"))
        host.send(handler, 403)
        return True

    with host.MediaServer({}, {"abcdefghijk": look}) as server:
        fetcher = Fetcher(config.Download(url=server.url, cookies=str(cookies), timeout_seconds=2), tmp_path / "work")
        with pytest.raises(FetchFailed) as failure:
            fetcher.fetch("abcdefghijk")
    assert seen == ["session=SECRETVALUE"]
    assert "SECRET" not in failure.value.reason
    assert "secret" not in failure.value.reason


def test_a_wrong_address_or_cookies_file_is_reported_before_any_download(tmp_path):
    with pytest.raises(UserError, match=r"must hold \{ytid\}"):
        Fetcher(config.Download(url="http://host/watch"), tmp_path)
    with pytest.raises(UserError, match="cookies names a file that does not exist"):
        Fetcher(config.Download(cookies=str(tmp_path / "none")), tmp_path)


def test_the_doctor_misses_a_javascript_runtime_for_youtube_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    assert "JavaScript runtime: install deno" in download.problems(config.Download())[0]
    assert download.problems(config.Download(url="http://127.0.0.1:1/{ytid}")) == []
    assert "cookies" in download.problems(config.Download(url="http://h/{ytid}", cookies=str(tmp_path / "no")))[0]
    monkeypatch.setattr(download.shutil, "which", lambda name: "/bin/node" if name == "node" else None)
    assert "write audioset: {download: {javascript: node}}" in download.problems(config.Download())[0]
    assert download.problems(config.Download(javascript="node")) == []


@pytest.mark.parametrize("url", ["https://www.youtube.com/watch?v={ytid}", "https://youtu.be/{ytid}"])
def test_youtube_is_known_by_its_host(url):
    assert download._extractor(url) == "Youtube"
    assert download._extractor("https://youtube.com.example.org/{ytid}") is None
    assert download._extractor("http://localhost:80/{ytid}") == "Generic"


def test_only_the_needed_span_is_fetched_and_it_is_in_place(tmp_path):
    """Of a WebM of some minutes a small part comes, if the host allows ranges; its clicks are where they belong."""
    rate, seconds = 48_000, 200
    wave = np.random.default_rng(0).normal(0, 0.03, rate * seconds).astype(np.float32)
    for k in range(seconds):
        wave[k * rate : k * rate + 144] = 0.8 * np.sin(2 * np.pi * 1500 * np.arange(144) / rate)
    soundfile.write(tmp_path / "long.wav", wave, rate)
    coded = ["-c:a", "libopus", "-b:a", "96k", "-ac", "1", tmp_path / "long.webm"]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", "-i", tmp_path / "long.wav", *coded], check=True)
    write_clips(tmp_path / "clips.tsv", [Clip("abcdefghijk_150500", "abcdefghijk", 150_500, 160_500, ("s",), 0)])
    media = {"abcdefghijk": tmp_path / "long.webm"}
    sent = {}
    for ranges in (True, False):
        out = tmp_path / str(ranges)
        with host.MediaServer(media, ranges=ranges) as server:
            settings = config.Download(pause_seconds=0, timeout_seconds=5, sections=True, url=server.url)
            sources = dict(folders=[], hdf5=[], encoding="pcm")
            acquire_shard(tmp_path / "clips.tsv", 0, out / "0.h5", out / "0.tsv", **sources, download=settings)
            sent[ranges] = server.sent
        assert [(e.state, e.seconds) for e in read_manifest(out / "0.tsv")] == [(State.OK, 10.0)]
        found = np.abs(Store([out / "0.h5"])[0].astype(float))
        for k in range(10):
            centre = int((k + 0.5 + 0.0015) * 16_000)
            near = found[centre - 4000 : centre + 4000]
            assert abs(int(near.argmax()) - 4000) / 16_000 < 0.02
    assert sent[True] < 0.6 * (tmp_path / "long.webm").stat().st_size
