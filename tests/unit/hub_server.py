"""A small server of the Hugging Face hub's protocol: repositories in memory, commits, and files by revision."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub's addresses that fetching a snapshot and pushing a commit use."""

    repositories: dict[str, dict[str, bytes]]
    seen: list[str]

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.split("?")[0])
        self.seen.append(f"{self.command} {path}")
        if (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)) and self.known(found[1]):
            files = self.repositories[found[1]]
            names = [{"rfilename": name} for name in files]
            self.answer({"id": found[1], "sha": revision(files), "siblings": names, "private": False, "tags": []})
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)) and self.known(found[1]):
            files = self.repositories[found[1]].items()
            self.answer([{"type": "file", "path": n, "size": len(b), "oid": sha(b)} for n, b in files])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.repositories.get(found[1], {})
            if found[3] not in files:
                return self.absent("EntryNotFound" if files else "RepoNotFound")
            content = files[found[3]]
            headers = {"ETag": f'"{sha(content)}"', "X-Repo-Commit": revision(files), "Accept-Ranges": "bytes"}
            self.answer(content, headers=headers)
        else:
            self.absent("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urllib.parse.unquote(self.path.split("?")[0])
        self.seen.append(f"POST {path}")
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer({"error": "Invalid username or password."}, status=401)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            about = json.loads(body)
            name = "/".join(filter(None, [about.get("organization"), about["name"]]))
            self.repositories.setdefault(name, {})
            self.answer({"url": f"{self.root}/{name}", "name": name, "id": name})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = self.repositories[found[1]]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            oid = revision(files)
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.root}/{found[1]}/commit/{oid}"})
        else:
            self.absent("RepoNotFound")

    @property
    def root(self) -> str:
        return f"http://{self.headers['Host']}"

    def known(self, name: str) -> bool:
        return name in self.repositories

    def absent(self, code: str) -> None:
        self.answer({"error": "not found"}, status=404, headers={"X-Error-Code": code})

    def answer(self, content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests read `seen`."""


def sha(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def revision(files: dict[str, bytes]) -> str:
    """A name of a repository's state."""
    return hashlib.sha1(json.dumps([(n, sha(b)) for n, b in sorted(files.items())]).encode()).hexdigest()


@contextmanager
def serving(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serve repositories (name → path → content) and yield (address, requests seen)."""
    handler = type("Hub", (Handler,), {"repositories": repositories, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.seen
        finally:
            server.shutdown()
            thread.join()
