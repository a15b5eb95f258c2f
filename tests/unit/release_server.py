"""A local copy of the authors' release: a server with ETags and ranges that may misbehave."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Release(http.server.BaseHTTPRequestHandler):
    """Serves a folder; `faults` are what befalls the next answers, `asked` the path and range of each request."""

    folder: Path
    faults: list[str]
    asked: list[tuple[str, str | None]]
    url: str

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path.lstrip("/"), wanted))
        fault = self.faults.pop(0) if self.faults else ""
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if fault in ("page", "hidden page"):
            content = b"<html><body>Please sign in.</body></html>"
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        body = content[start:]
        if fault == "shorter than it is":
            body = body[: len(body) // 2]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/octet-stream")
        self.send_header("Content-Length", str(len(body) + 1000 * (fault == "longer than it is")))
        self.send_header("ETag", '"1"')
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 3] if fault == "breaks off" else body)
        self.close_connection = True

    def log_message(self, *args: object) -> None: ...


@contextmanager
def release_server(folder: Path) -> Iterator[type[Release]]:
    """Serve `folder`, which is made; its files are at ``v0.0.1/``, and `url` is the address of that."""

    class Fresh(Release):
        faults, asked = [], []

    Fresh.folder = folder
    (folder / "v0.0.1").mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    Fresh.url = f"http://127.0.0.1:{server.server_port}/v0.0.1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield Fresh
    finally:
        server.shutdown()
        server.server_close()
