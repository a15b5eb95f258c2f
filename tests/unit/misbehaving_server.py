"""A local host of media that can misbehave in every way that the download must survive."""

from __future__ import annotations

import http.server
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TYPES = {".webm": "audio/webm", ".m4a": "audio/mp4", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".wav": "audio/wav"}


class MediaServer:
    """Serves ``/watch?v=ID`` from files; `faults` maps an id to what happens in place of (or before) that.

    A fault is a function of (handler, number of this request to the id, counted from 0); it answers the request and
    returns True, or returns False for the ordinary answer. `requests` counts requests by id.
    """

    def __init__(
        self, media: dict[str, Path], faults: dict[str, Callable] | None = None, *, ranges: bool = False
    ) -> None:
        self.media, self.faults, self.ranges, self.sent = media, faults or {}, ranges, 0
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *args) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address) -> None: ...  # clients hang up on faults

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/watch?v={{ytid}}"

    def answer(self, handler) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
        ytid = query.get("v", [""])[0]
        with self.lock:
            number = self.requests[ytid]
            self.requests[ytid] += 1
        fault = self.faults.get(ytid)
        if fault is not None and fault(handler, number):
            return
        path = self.media.get(ytid)
        if path is None:
            send(handler, 404)
            return
        data, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if not self.ranges:
            send(handler, 200, data, TYPES[path.suffix])
            return
        first, last = (int(wanted[1]), int(wanted[2] or len(data) - 1)) if wanted else (0, len(data) - 1)
        part = data[first : last + 1]
        at = {"Content_Range": f"bytes {first}-{last}/{len(data)}"} if wanted else {}
        send(handler, 206 if wanted else 200, b"", TYPES[path.suffix], length=len(part), Accept_Ranges="bytes", **at)
        for i in range(0, len(part), 1 << 14):  # slowly, and counted as it goes: a client that seeks hangs up early
            handler.wfile.write(part[i : i + (1 << 14)])
            self.sent += len(part[i : i + (1 << 14)])
            time.sleep(0.002)

    def __enter__(self) -> MediaServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()


def send(
    handler, status: int, body: bytes = b"", kind: str = "text/plain", length: int | None = None, **headers: str
) -> None:
    """One whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, *, times: int | None = None, **headers: str) -> Callable:
    """Answers `code`, for the first `times` requests (None: always)."""

    def fault(handler, number: int) -> bool:
        if times is not None and number >= times:
            return False
        send(handler, code, b"no", **headers)
        return True

    return fault


def body(data: bytes, kind: str = "audio/webm") -> Callable:
    """Answers `data`, whatever it is."""

    def fault(handler, number: int) -> bool:
        send(handler, 200, data, kind)
        return True

    return fault


def truncated(data: bytes, kind: str = "audio/webm", *, times: int | None = None, announced: bool = True) -> Callable:
    """Half of `data` and then the connection closes, with or without its true length in the header."""

    def fault(handler, number: int) -> bool:
        if times is not None and number >= times:
            return False
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        if announced:
            handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True
        return True

    return fault


def stalled(data: bytes, kind: str = "audio/webm", *, seconds: float = 30.0, before_header: bool = False) -> Callable:
    """Begins (or not even that) and then says nothing for `seconds`."""

    def fault(handler, number: int) -> bool:
        if not before_header:
            handler.send_response(200)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[:1000])
            handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


def dripping(data: bytes, kind: str = "audio/webm", *, pause: float = 0.2) -> Callable:
    """Never silent for long, and never done."""

    def fault(handler, number: int) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for byte in data:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause)
        return True

    return fault


def redirect_loop(handler, number: int) -> bool:
    """Sends the client round in circles."""
    send(handler, 302, b"", Location=handler.path)
    return True


def reset(handler, number: int) -> bool:
    """Hangs up without a word."""
    handler.close_connection = True
    handler.connection.close()
    return True
