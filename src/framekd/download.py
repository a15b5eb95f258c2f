"""Downloading a video's audio with yt-dlp, in process, and classifying why a download failed.

Refusals of the host (no access, wait, prove that you are human) are obeyed and recorded, never evaded. The user's
cookies file is read and checked once; neither its content nor its path appears in a message, a log or a manifest.
"""

from __future__ import annotations

import io
import ipaddress
import re
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framekd import config
from framekd.config import UserError
from framekd.fetch import retry_after
from framekd.files import disk_full
from framekd.manifest import State, one_line

MAX_BYTES = 4 << 30  # larger than any audio track
_PROGRAMS = {"deno": "deno", "node": "node", "bun": "bun", "quickjs": "qjs"}  # yt-dlp's name of a runtime: program

# Messages of hosts and their meaning, the most specific first: YouTube's message for a rate limit is "unavailable …
# try again later".
_MESSAGES: tuple[tuple[State, str], ...] = (
    (State.RATE_LIMITED, r"rate.?limit|too many requests|try again later"),
    (State.BOT_CHECK, r"not a bot|captcha|unusual traffic|confirm you.re human"),
    (State.AGE, r"confirm your age|age.?restrict|inappropriate for some users|age.?gate"),
    (State.GEO, r"country|geo.?restrict|your (?:region|location)|geographic"),
    (
        State.PRIVATE,
        r"private|members.?only|join this channel|premium|requires payment|purchase|\brent\b|\bsign in\b|log ?in",
    ),
    (State.GONE, r"removed|terminated|does not exist|no longer available|unavailable|deleted|not available|copyright"),
)
_STATUS_CODES = {
    401: State.PRIVATE,
    402: State.PRIVATE,
    403: State.PRIVATE,
    404: State.GONE,
    410: State.GONE,
    429: State.RATE_LIMITED,
    451: State.GEO,
}


class FetchFailed(Exception):
    """A failed download: the clip's state, the reason in one line, and the seconds that the host asks to wait."""

    def __init__(self, state: State, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.state, self.reason, self.retry_after = state, one_line(reason), retry_after


@dataclass(frozen=True)
class Fetched:
    """A local file with the audio of a video from `begin` seconds on."""

    path: Path
    begin: float
    source: str
    whole: bool = True
    """Whether the host stated the file's length, so that truncation would have been noticed."""


def problems(settings: config.Download) -> list[str]:
    """Problems that prevent downloads on this machine, one sentence each; empty if there are none."""
    out = []
    try:
        import yt_dlp  # noqa: F401
    except ImportError:
        return ["yt-dlp is not installed; install framekd[download] (make env does)"]
    if _is_youtube(settings.url) and not shutil.which(_PROGRAMS[settings.javascript]):
        others = [name for name, program in _PROGRAMS.items() if shutil.which(program)]
        out.append(
            f"YouTube needs a JavaScript runtime: install {settings.javascript} and put it on PATH"
            + (f", or write audioset: {{download: {{javascript: {others[0]}}}}}" if others else "")
        )
    if settings.cookies:
        try:
            read_cookies(settings.cookies)
        except UserError as error:
            out.append(str(error))
    return out


def read_cookies(path: str | Path) -> str:
    """The text of a cookies file, checked: yt-dlp prints a line that it cannot read, secret included.

    Raises:
        UserError: it is absent, or no cookies file; the sentence has the number of a line, never its content.
    """
    key, again = "audioset.download.cookies", "export the file again in Netscape's format"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{key} names a file that does not exist or cannot be read; {again}") from None
    lines = text.splitlines()
    if not lines or not re.match(r"#( Netscape)? HTTP Cookie File", lines[0]):
        raise UserError(f"{key}: line 1 is not `# Netscape HTTP Cookie File`; {again}")
    for number, line in enumerate(lines, 1):
        cells = line.removeprefix("#HttpOnly_").split("\t")
        if not line.strip() or cells[0].startswith("#"):
            continue
        if len(cells) != 7 or not re.fullmatch(r"([0-9]+(\.[0-9]+)?)?", cells[4]):
            raise UserError(f"{key}: line {number} is not a cookie of seven columns between tabs; {again}")
        if (cells[1] == "TRUE") != cells[0].startswith("."):
            raise UserError(f"{key}: line {number} contradicts itself about subdomains; {again}")
    return text


def _host(url: str) -> str:
    return (urllib.parse.urlsplit(url).hostname or "").lower()


def _is_youtube(url: str) -> bool:
    host = _host(url)
    return host == "youtu.be" or host == "youtube.com" or host.endswith(".youtube.com")


def _extractor(url: str) -> str | None:
    """Name of yt-dlp's extractor for an address, if it is known: trying all of them takes half a second."""
    if _is_youtube(url):
        return "Youtube"
    try:
        ipaddress.ip_address(_host(url))
        return "Generic"
    except ValueError:
        return "Generic" if _host(url) == "localhost" else None


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and its causes, outermost first."""
    out: list[BaseException] = []
    waiting = [error]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or any(found is seen for seen in out):
            continue
        out.append(found)
        inner = getattr(found, "exc_info", None)
        waiting += [inner[1] if inner else None, getattr(found, "cause", None), found.__cause__, found.__context__]
    return out


def classify(error: BaseException, *, youtube: bool = False) -> FetchFailed:
    """Classify an error of yt-dlp. An unknown error counts as a network error, which is tried again."""
    from yt_dlp.networking.exceptions import HTTPError
    from yt_dlp.utils import GeoRestrictedError, UnsupportedError

    chain = _chain(error)
    for found in chain:
        if isinstance(found, FetchFailed):
            return found
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ")
    text = re.sub(r"; please report this issue on .*", "", text, flags=re.S)
    text = re.sub(r"^\[[\w:+]+\] (?:\S+: )?", "", text)
    http = next((found for found in chain if isinstance(found, HTTPError)), None)
    if http is not None:
        reason = f"HTTP {http.status} {http.reason or ''}".strip()
        if http.redirect_loop:
            return FetchFailed(State.NETWORK, "redirect loop")
        wait = retry_after(http.response.headers.get("Retry-After"))
        if http.status == 403 and youtube:  # the media address has expired, or the session is throttled
            return FetchFailed(State.NETWORK, reason)
        if http.status in _STATUS_CODES:
            return FetchFailed(_STATUS_CODES[http.status], reason, retry_after=wait)
        state = State.GONE if 400 <= http.status < 500 and http.status not in (408, 425) else State.NETWORK
        return FetchFailed(state, reason, retry_after=wait)
    if any(isinstance(found, GeoRestrictedError) for found in chain):
        return FetchFailed(State.GEO, text)
    if any(isinstance(found, UnsupportedError) for found in chain):
        return FetchFailed(State.CORRUPT, "a web page instead of media")
    if re.search(r"data blocks|is empty", text, re.I):
        return FetchFailed(State.NETWORK, "an empty answer")
    if re.search(r"timed out|connection|unable to download|bytes read|resolve|ssl", text, re.I):
        return FetchFailed(State.NETWORK, text)
    for state, pattern in _MESSAGES:
        if re.search(pattern, text, re.I):
            return FetchFailed(state, text)
    return FetchFailed(State.NETWORK, text)


class _NoLog:
    """Logger for yt-dlp that writes nothing; errors come as exceptions."""

    def debug(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


class Fetcher:
    """Downloads audio tracks, with one yt-dlp object per thread.

    Args:
        settings: address template, time-out, cookies, proxy.
        directory: folder of the downloaded files; each thread has one, which its next download overwrites.
        deadline: longest time for one file in seconds; None is 20 times the time-out.
    """

    def __init__(self, settings: config.Download, directory: str | Path, *, deadline: float | None = None) -> None:
        if "{ytid}" not in settings.url:
            raise UserError(f"audioset.download.url must hold {{ytid}}, and {settings.url!r} does not")
        self._cookies = read_cookies(settings.cookies) if settings.cookies else ""
        self.settings, self.directory = settings, Path(directory)
        self.deadline = deadline or 20 * settings.timeout_seconds
        self.youtube = _is_youtube(settings.url)
        self.source = _host(settings.url)
        self._extractor = _extractor(settings.url)
        self._local = threading.local()

    def _options(self, target: Path) -> dict[str, Any]:
        options: dict[str, Any] = dict(
            format="bestaudio[acodec=opus]/bestaudio/best",  # Opus in WebM has exact time stamps, AAC not always
            outtmpl={"default": str(target).replace("%", "%%")},
            quiet=True,
            no_warnings=True,
            noprogress=True,
            logger=_NoLog(),
            noplaylist=True,
            cachedir=False,
            continuedl=False,
            overwrites=True,
            nopart=True,
            fixup="never",
            check_formats=False,
            updatetime=False,
            retries=0,
            fragment_retries=0,
            extractor_retries=0,
            file_access_retries=0,
            skip_unavailable_fragments=False,
            buffersize=16,  # of the first read, then it grows; the deadline is checked between reads
            socket_timeout=self.settings.timeout_seconds,
            progress_hooks=[self._check_progress],
            js_runtimes={self.settings.javascript: {}},
        )
        if self.settings.cookies:
            options["cookiefile"] = io.StringIO(self._cookies)  # what was checked; no path that a message could name
        if self.settings.proxy:
            options["proxy"] = self.settings.proxy
        return options

    def _client(self) -> tuple[Any, Path]:
        if not hasattr(self._local, "client"):
            import yt_dlp

            self.directory.mkdir(parents=True, exist_ok=True)
            target = self.directory / f"fetched-{threading.get_ident()}.media"
            self._local.client = yt_dlp.YoutubeDL(self._options(target)), target
        return self._local.client

    def _check_progress(self, progress: dict[str, Any]) -> None:
        if progress.get("status") == "downloading":
            self._local.whole = progress.get("total_bytes") is not None
        if time.monotonic() - self._local.began > self.deadline:
            raise FetchFailed(State.NETWORK, f"slower than {self.deadline:.0f} s for one file")
        if (progress.get("downloaded_bytes") or 0) > MAX_BYTES:
            raise FetchFailed(State.CORRUPT, "larger than any audio track")

    def fetch(self, ytid: str, *, span: tuple[float, float] | None = None, take: Span | None = None) -> Fetched:
        """Download the audio track of a video.

        Args:
            span: begin and end in seconds of what is needed.
            take: downloads a span of a remote file. It is tried if the span is much shorter than the track; if it
                fails, the whole track is downloaded.
        Raises:
            FetchFailed: with the reason.
        """
        client, target = self._client()
        target.unlink(missing_ok=True)
        self._local.began, self._local.whole = time.monotonic(), False
        url = self.settings.url.format(ytid=ytid)
        try:
            if span is None or take is None:
                info = client.extract_info(url, download=True, ie_key=self._extractor)
            else:
                info = client.extract_info(url, download=False, ie_key=self._extractor)
                remote = _remote(info, span, self.settings)
                if remote is not None and take(remote, span, target):
                    return Fetched(target, span[0], self.source)
                info = client.process_ie_result(info, download=True)
        except Exception as error:  # yt-dlp raises errors of any type
            if disk_full(error):
                raise UserError(f"{self.directory}: the disk is full; free some space and try again.") from error
            raise classify(error, youtube=self.youtube) from None
        if info is None or not target.is_file():
            raise FetchFailed(State.CORRUPT, "no media at this address")
        if target.stat().st_size == 0:
            raise FetchFailed(State.NETWORK, "an empty answer")
        return Fetched(target, 0.0, self.source, self._local.whole)


@dataclass(frozen=True)
class Remote:
    """A media file of which a part can be requested: its address and the options of the request."""

    url: str
    headers: dict[str, str]
    proxy: str | None
    timeout: float


Span = Callable[[Remote, tuple[float, float], Path], bool]
LEAST_SAVING = 60.0
"""A part is requested instead of the whole track only if it is shorter by this many seconds."""


def _remote(info: dict[str, Any] | None, span: tuple[float, float], settings: config.Download) -> Remote | None:
    """The chosen audio track, if a part of it can be requested and saves enough."""
    chosen = (info or {}).get("requested_formats") or [info or {}]
    track = chosen[0]
    duration = (info or {}).get("duration")
    saved = span[0] if duration is None else duration - (span[1] - span[0])
    # Only WebM: seeking in AAC loses the priming samples (12 to 23 ms), and seeking in MP3 is not exact.
    plain = track.get("protocol") in ("http", "https") and track.get("ext") == "webm"
    if len(chosen) != 1 or not plain or saved < LEAST_SAVING or track.get("cookies"):
        return None
    return Remote(track["url"], dict(track.get("http_headers") or {}), settings.proxy, settings.timeout_seconds)
