"""Fetching files by address: resumed after a break, checked, and put in place whole."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING

import tenacity

from framekd.errors import UserError
from framekd.files import disk_full, sha256_of, sync_folder, write_text

if TYPE_CHECKING:  # imported where it is used: most processes never fetch anything
    import requests
    from tqdm import tqdm

MAX_BYTES = 64 << 30
"""Size above which a file is refused; no published file comes near it."""
LONGEST_PAUSE = 60.0
"""Longest pause in seconds between two attempts, also where a server asks for more."""


class Interrupted(OSError):
    """An attempt that may work when repeated; `pause` is how many seconds the server asks to wait."""

    def __init__(self, message: str, *, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date); None if it is absent or malformed."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return float(Retry().parse_retry_after(value)) if value else None
    except (InvalidHeader, ValueError):
        return None


def fetch(
    url: str | None,
    path: str | Path,
    *,
    sha256: str | None = None,
    attempts: int = 5,
    timeout: float = 60.0,
    max_bytes: int = MAX_BYTES,
    progress: bool = False,
) -> Path:
    """Make sure that `path` exists, and download it from `url` if it does not.

    A file that is already there (put there by hand, say) is accepted. Its SHA-256 is written to `path`.sha256; a file
    that has changed since is refused.

    Args:
        sha256: expected sum; compared whether the file is new or was there.
        attempts, timeout, max_bytes, progress: see :func:`download`.
    Returns:
        `path`.
    Raises:
        UserError: the file cannot be fetched, or is not the expected one.
    """
    path = Path(path)
    if not path.is_file():
        by_hand = f"put the file there by hand as {path}"
        if not url:
            raise UserError(f"{path} is absent and no address is configured for it: {by_hand}.")
        try:
            download(
                url,
                path,
                sha256=sha256,
                attempts=attempts,
                timeout=timeout,
                max_bytes=max_bytes,
                progress=progress,
            )
        except OSError as error:
            raise UserError(f"{url} could not be fetched ({error}): {by_hand}, or try again.") from error
    record = path.with_name(path.name + ".sha256")
    recorded = (record.read_text().split() or [""])[0] if record.is_file() else ""
    digest = check_sum(
        path, sha256 or recorded, f"remove it to fetch it again, or {record.name} if the change is meant"
    )
    if digest != recorded:  # otherwise nothing is written: the folder may be read-only
        write_text(record, f"{digest}  {path.name}\n")
    return path


def download(
    url: str,
    path: str | Path,
    *,
    sha256: str | None = None,
    attempts: int = 5,
    timeout: float = 60.0,
    max_bytes: int = MAX_BYTES,
    progress: bool = False,
) -> Path:
    """Download `url` (http, https or file) to `path`, which is replaced only when the whole file has come.

    What has come is kept in `path`.part, also between calls, and only the rest is asked for as long as the server
    states that its file is still the same. Broken connections, time-outs and the answers 408, 425, 429 and 5xx are
    tried again.

    Args:
        sha256: expected sum of the file.
        attempts: how often the server is asked.
        timeout: longest silence of the connection in seconds.
        max_bytes: size above which the file is refused.
        progress: show a bar on stderr, if that is a terminal.
    Raises:
        OSError: the file did not come.
        UserError: a web page or a file too large came, the sum differs, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        if urllib.parse.urlsplit(url).scheme == "file":
            shutil.copyfile(urllib.request.url2pathname(urllib.parse.urlsplit(url).path), part)
        else:
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(Interrupted),
                stop=tenacity.stop_after_attempt(attempts),
                wait=_pause,
                reraise=True,
            )
            retrying(_receive, url, part, timeout, max_bytes, progress)
    except OSError as error:
        if disk_full(error):
            raise UserError(f"{path}: the disk is full; free some space and try again.") from error
        raise
    if not part.stat().st_size:
        raise OSError("the file is empty")
    check_sum(part, sha256, f"put the right file there by hand as {path}, or correct the configured sum")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)
    _validator(part).unlink(missing_ok=True)
    return path


def check_sum(path: Path, expected: str | None, remedy: str) -> str:
    """SHA-256 of `path`.

    Raises:
        UserError: `expected` is given and differs; the sentence ends with `remedy`.
    """
    digest = sha256_of(path)
    if expected and digest != expected.lower():
        raise UserError(f"{path} has SHA-256 {digest}, expected {expected.lower()}: {remedy}.")
    return digest


_exponential = tenacity.wait_exponential(multiplier=0.5, max=LONGEST_PAUSE)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, else 0.5 s, 1 s, 2 s, …"""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.pause if isinstance(error, Interrupted) else None
    return _exponential(state) if asked is None else min(asked, LONGEST_PAUSE)


def _validator(part: Path) -> Path:
    """The file beside `part` that holds the ETag or the date of what `part` is the beginning of."""
    return part.with_name(part.name + ".tag")


def _version(answer: requests.Response) -> str:
    """What identifies the server's file exactly: a strong ETag, else the date of its last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _receive(url: str, part: Path, timeout: float, max_bytes: int, progress: bool) -> None:
    """One attempt: ask for what is missing in `part` and append it, or begin again if the server's file has changed."""
    import requests

    tag = _validator(part)
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file itself, so that its length can be checked
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    try:
        hooks = {"response": _refuse_redirect}
        with requests.get(url, headers=headers, stream=True, timeout=timeout, hooks=hooks) as answer:
            _save(answer, part, have, url, max_bytes, progress)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Interrupted(_cause(error)) from error


def _cause(error: BaseException) -> str:
    """The system's own words for a failed connection, such as "Connection refused", out of the wrappers around them."""
    inner: BaseException = error
    while following := inner.__cause__ or inner.__context__:
        inner = following
    return (isinstance(inner, OSError) and inner.strerror) or str(error)


def _refuse_redirect(answer: requests.Response, **_: object) -> None:
    """UserError for an answer that leads from a public host to an address of this network, or from https to http."""
    if not answer.is_redirect:
        return
    target = urllib.parse.urljoin(answer.url, answer.headers["Location"])
    old, new = (urllib.parse.urlsplit(url) for url in (answer.url, target))
    if old.scheme == "https" and new.scheme != "https":
        raise UserError(f"{answer.url} leads to an address without encryption ({new.hostname}); check the address.")
    if _is_local(new.hostname) and not _is_local(old.hostname):
        raise UserError(f"{answer.url} leads to {new.hostname}, which is in this network; check the address.")


def _is_local(host: str | None) -> bool:
    """Whether a host is this machine or in its private network."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return False  # the request itself says what is wrong
    return any(not ipaddress.ip_address(address[0].split("%")[0]).is_global for *_, address in found)  # type: ignore[union-attr]


def _save(answer: requests.Response, part: Path, have: int, url: str, max_bytes: int, progress: bool) -> None:
    """Check an answer and write it to `part`, whose first `have` bytes are kept if they are of the same file."""
    tag = _validator(part)
    if answer.status_code == 416:  # `part` is as long as the file or longer, so it is not the beginning of it
        part.unlink(missing_ok=True)
        raise Interrupted("the server's file is not the one that was begun")
    if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
        pause = retry_after(answer.headers.get("Retry-After"))
        raise Interrupted(f"HTTP {answer.status_code} {answer.reason}", pause=pause)
    answer.raise_for_status()
    if answer.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        raise UserError(f"{url}: a web page came instead of the file; check the address.")
    total = _total(answer, have, tag.read_text() if have else "", part)
    if total is not None and total > max_bytes:
        raise UserError(f"{url}: the file has {total} bytes, more than the limit of {max_bytes}.")
    begin = have if answer.status_code == 206 else 0
    if not begin:
        tag.unlink(missing_ok=True)  # never a new tag beside old bytes
    with part.open("ab" if begin else "wb") as file:
        if not begin and (version := _version(answer)):
            write_text(tag, version)
        with _bar(part, total, begin, hidden=not progress) as bar:
            _copy(answer, file, url, max_bytes, bar)
        size = file.tell()
    if total is not None and size != total:
        raise Interrupted(f"the connection ended after {size} of {total} bytes")


def _bar(part: Path, total: int | None, begin: int, *, hidden: bool) -> tqdm:
    """A bar of the bytes that have come, the first `begin` of them in an earlier attempt; only on a terminal."""
    from tqdm import tqdm

    name = part.name.removesuffix(".part")
    return tqdm(desc=name, total=total, initial=begin, unit="B", unit_scale=True, disable=hidden or None)


def _copy(answer: requests.Response, file: IO[bytes], url: str, max_bytes: int, bar: tqdm) -> None:
    """Write the body of an answer to `file`, also the last bytes before a connection breaks."""
    from urllib3.exceptions import HTTPError

    while True:
        try:
            block = answer.raw.read1(1 << 20)  # iter_content would drop an incomplete last block
        except HTTPError as error:
            raise Interrupted(f"the connection ended after {file.tell()} bytes ({error})") from error
        if not block:
            return
        file.write(block)
        bar.update(len(block))
        if file.tell() > max_bytes:
            raise UserError(f"{url}: more than the limit of {max_bytes} bytes came.")


def _total(answer: requests.Response, have: int, version: str, part: Path) -> int | None:
    """Length of the whole file in bytes, None if the server does not state it.

    Raises:
        Interrupted: a part came that does not continue the `have` bytes of `part`; `part` is removed.
    """
    if answer.status_code != 206:
        length = answer.headers.get("Content-Length")
        return int(length) if length is not None and length.isdigit() else None
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
    now = _version(answer)
    if span is None or int(span[1]) != have or (now and now != version):
        part.unlink(missing_ok=True)
        raise Interrupted("the server's file is not the one that was begun")
    return None if span[3] == "*" else int(span[3])
