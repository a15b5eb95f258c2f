"""A local web server that replaces YouTube: its watch pages are the media files themselves."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from framekd.config import UserError

_TYPES = {"webm": "audio/webm", "m4a": "audio/mp4", "mp3": "audio/mpeg"}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self._file()
        if path is None:
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            span = _span(self.headers.get("Range"), size)
            if span is None:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first, last, partial = span
            self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
            self.send_header("Content-Type", _TYPES.get(path.suffix[1:], "application/octet-stream"))
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                file.seek(first)
                self._copy(file, last - first + 1)

    def _copy(self, file: Any, count: int) -> None:
        try:
            if count == os.fstat(file.fileno()).st_size:
                shutil.copyfileobj(file, self.wfile)
            else:
                self.wfile.write(file.read(count))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has left, which is not an error

    def _file(self) -> Path | None:
        """The file behind ``/watch?v=ID`` or ``/media/NAME``; only files of the index exist."""
        address = urlsplit(self.path)
        if address.path == "/watch":
            name = self.server.files.get((parse_qs(address.query).get("v") or [""])[0])
        else:
            asked = unquote(address.path).removeprefix("/media/")
            name = asked if asked in self.server.names else None
        path = self.server.directory / name if name else None
        return path if path is not None and path.is_file() else None


def _span(header: str | None, size: int) -> tuple[int, int, bool] | None:
    """(first byte, last byte, whether partial) of a Range header; None if the range cannot be satisfied."""
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return (0, size - 1, False)
    begin, end = found.groups()
    first = int(begin) if begin else max(0, size - int(end))
    last = min(int(end), size - 1) if begin and end else size - 1
    return (first, last, True) if first <= last else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    directory: Path
    files: dict[str, str]
    names: frozenset[str]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that left; show all other errors."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class serve:
    """Serve a media folder (with its ``index.json``) on 127.0.0.1 while the ``with`` block runs.

    ``GET /watch?v=ID`` and ``/media/FILE`` return the media; HEAD and byte ranges work. Everything else, and a missing
    video, is a 404. ``server.url`` is the address of a page: ``http://127.0.0.1:PORT/watch?v={ytid}``.

    Raises:
        UserError: the folder has no index.json.
    """

    def __init__(self, directory: str | Path, port: int = 0) -> None:
        self.directory = Path(directory)
        index = self.directory / "index.json"
        if not index.is_file():
            raise UserError(f"{index}: not found; build the miniature first (it writes the media and their index)")
        self._files = json.loads(index.read_text(encoding="utf-8"))
        self._port = port

    def __enter__(self) -> serve:
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.directory = self.directory
        self._server.files = self._files
        self._server.names = frozenset(self._files.values())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port of the server."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page of a video, with ``{ytid}`` in place of its id."""
        return f"http://127.0.0.1:{self.port}/watch?v={{ytid}}"
