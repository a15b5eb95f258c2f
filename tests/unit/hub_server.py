"""A small server of the Hugging Face hub's protocol: commits, files by revision, and Git LFS for large files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest


class Large(NamedTuple):
    """What a repository holds of a file that went by Git LFS: its SHA-256 and its length."""

    oid: str
    size: int


Files = dict[str, bytes | Large]
BY_LFS = (".safetensors", ".onnx", ".pt")
"""Endings of the files that a new repository of the hub sends by LFS."""


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub's addresses that fetching a snapshot and pushing a commit use.

    Attributes:
        repositories: name → path → content.
        storage: folder of the objects of Git LFS, by their sums; None: every file is part of its commit.
        seen: requests; those of the storage that show it the token say so.
    """

    repositories: dict[str, Files]
    storage: Path | None
    seen: list[str]

    def do_GET(self) -> None:
        path = self.noted()
        if self.storage and (found := re.fullmatch(r"/storage/([0-9a-f]{64})", path)):
            self.answer((self.storage / found[1]).read_bytes())
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)) and self.known(found[1]):
            files = self.repositories[found[1]]
            names = [{"rfilename": name} for name in files]
            self.answer({"id": found[1], "sha": revision(files), "siblings": names, "private": False, "tags": []})
        elif (found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)) and self.known(found[1]):
            self.answer([entry(name, content) for name, content in self.repositories[found[1]].items()])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.repositories.get(found[1], {})
            if found[3] not in files:
                return self.absent("EntryNotFound" if files else "RepoNotFound")
            content, headers = files[found[3]], {"X-Repo-Commit": revision(files), "Accept-Ranges": "bytes"}
            if isinstance(content, Large):  # its place is on another host
                headers |= {"X-Linked-Etag": f'"{content.oid}"', "X-Linked-Size": str(content.size)}
                place = f"http://localhost:{self.server.server_address[1]}/storage/{content.oid}"
                return self.answer(b"", status=302, headers={**headers, "Location": place})
            self.answer(content, headers={**headers, "ETag": f'"{sha(content)}"'})
        else:
            self.absent("RepoNotFound")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """Take an object of Git LFS, of which nothing but the sum is known here."""
        oid, rest = self.noted().removeprefix("/storage/"), int(self.headers["Content-Length"])
        if self.storage is None or not self.storage.is_dir():
            return self.answer({"error": "no room"}, status=403)
        digest, part = hashlib.sha256(), self.storage / f"{oid}.part"
        with part.open("wb") as file:
            while rest and (block := self.rfile.read(min(rest, 1 << 20))):
                digest.update(block)
                rest -= file.write(block)
        if rest or digest.hexdigest() != oid:
            return self.answer({"error": "not the object"}, status=400)
        part.rename(self.storage / oid)
        self.answer(b"")

    def do_POST(self) -> None:
        path = self.noted()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if self.storage and name.endswith(BY_LFS) else "regular" for name in names]
            about = [{"path": n, "uploadMode": mode, "shouldIgnore": False} for n, mode in zip(names, modes)]
            self.answer({"files": about})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/(objects/batch|verify)", path):
            about = json.loads(body)
            if found[2] == "verify":
                return self.answer({}, status=200 if self.stored(about) else 404)
            assert (about["operation"], about["hash_algo"]) == ("upload", "sha256") and "basic" in about["transfers"]
            self.answer({"transfer": "basic", "objects": [self.action(found[1], one) for one in about["objects"]]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            files = self.repositories[found[1]]
            for line in map(json.loads, body.splitlines()):
                key, value = line["key"], line["value"]
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile" and value["algo"] == "sha256" and self.stored(value):
                    files[value["path"]] = Large(value["oid"], value["size"])
                elif key == "lfsFile":
                    return self.answer({"error": "an object of Git LFS is absent"}, status=400)
            oid = revision(files)
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.root}/{found[1]}/commit/{oid}"})
        else:
            self.absent("RepoNotFound")

    def noted(self) -> str:
        """The request's path, which is added to `seen`."""
        path = urllib.parse.unquote(self.path.split("?")[0])
        shown = path.startswith("/storage/") and "Authorization" in self.headers
        self.seen.append(f"{self.command} {path}" + " with the token" * shown)
        return path

    def stored(self, about: dict) -> bool:
        """Whether an object of Git LFS has come whole."""
        path = self.storage / about["oid"] if self.storage else None
        return path is not None and path.is_file() and path.stat().st_size == about["size"]

    def action(self, name: str, about: dict) -> dict:
        """What has to be done with an object of Git LFS: nothing if it is there."""
        if self.stored(about):
            return about
        places = {"upload": f"/storage/{about['oid']}", "verify": f"/{name}.git/info/lfs/verify"}
        return {**about, "actions": {what: {"href": self.root + place} for what, place in places.items()}}

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


def entry(name: str, content: bytes | Large) -> dict:
    """A file in the list of a revision's files."""
    if not isinstance(content, Large):
        return {"type": "file", "path": name, "size": len(content), "oid": sha(content)}
    lfs = {"oid": content.oid, "size": content.size, "pointerSize": len(pointer(content))}
    return {"type": "file", "path": name, "size": content.size, "oid": sha(content), "lfs": lfs}


def pointer(content: Large) -> bytes:
    """What Git itself keeps of a file that went by LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{content.oid}\nsize {content.size}\n".encode()


def sha(content: bytes | Large) -> str:
    """Git's name of a file's content."""
    content = pointer(content) if isinstance(content, Large) else content
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def revision(files: Files) -> str:
    """A name of a repository's state."""
    return hashlib.sha1(json.dumps([(n, sha(b)) for n, b in sorted(files.items())]).encode()).hexdigest()


@contextmanager
def serving(repositories: dict[str, Files], storage: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve repositories (name → path → content) and yield (address, requests seen); see :class:`Handler`."""
    handler = type("Hub", (Handler,), {"repositories": repositories, "storage": storage, "seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.seen
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def as_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, storage: Path | None = None
) -> Iterator[tuple[dict[str, Files], list[str]]]:
    """An empty server that huggingface_hub, imported anew, takes for the real one: (repositories, requests).

    Its cache is in `folder`; see :class:`Handler` for `storage`.
    """
    repositories: dict[str, Files] = {}
    with serving(repositories, storage) as (address, seen):
        about = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_TOKEN": "secret"}
        for name, value in about.items():
            monkeypatch.setenv(name, value)
        forget()
        yield repositories, seen
    forget()


def forget() -> None:
    """Unload huggingface_hub, which reads the environment when it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
