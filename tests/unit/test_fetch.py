"""Fetching files: resumed after a break, started anew when the server's file has changed, and refused when wrong."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading

import pytest

from framekd import fetch as fetching
from framekd.config import UserError
from framekd.fetch import download, fetch

OLD, NEW = bytes(range(256)) * 800, bytes(reversed(range(256))) * 900


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` with its ETag and answers range requests; its faults are set by the tests."""

    content = OLD
    tag = '"old"'
    breaks = 0  # answers that end after a third
    change_after_break = False  # the file becomes NEW after the first broken answer
    honours_if_range = True
    states_range = True
    status: tuple[int, ...] = ()  # statuses of the next answers
    kind = "application/octet-stream"
    states_length = True
    ranges: list[str | None] = []  # noqa: RUF012 (a fixture resets it)

    def do_GET(self):
        server = type(self)
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.status:
            code, *rest = server.status
            server.status = tuple(rest)
            self.send_response(code)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if wanted and server.honours_if_range and self.headers.get("If-Range") != server.tag:
            wanted = None
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", server.kind)
        if server.states_length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.tag)
        if wanted and server.states_range:
            size = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            self.wfile.write(body[: len(body) // 3])
            if server.change_after_break:
                server.content, server.tag = NEW, '"new"'
            return
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "_pause", lambda state: 0.0)


@pytest.fixture
def server():
    class Fresh(Server):
        ranges: list[str | None] = []  # noqa: RUF012

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        Fresh.url = f"http://127.0.0.1:{running.server_address[1]}/weights.pt"
        yield Fresh
        running.shutdown()


def test_a_broken_download_continues_where_it_stopped_and_its_sum_is_recorded(server, tmp_path):
    server.breaks = 2
    path = fetch(server.url, tmp_path / "sub" / "weights.pt")
    assert path.read_bytes() == OLD
    third = len(OLD) // 3
    assert server.ranges == [None, f"bytes={third}-", f"bytes={third + (len(OLD) - third) // 3}-"]
    digest = hashlib.sha256(OLD).hexdigest()
    assert (tmp_path / "sub" / "weights.pt.sha256").read_text() == f"{digest}  weights.pt\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.pt", "weights.pt.sha256"]
    assert fetch(server.url, path, sha256=digest.upper()) == path and len(server.ranges) == 3
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match=r"SHA-256 .* expected"):
        fetch(server.url, path)


@pytest.mark.parametrize("honours", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changes_during_a_broken_download_is_downloaded_from_its_beginning(server, tmp_path, honours):
    server.breaks, server.change_after_break, server.honours_if_range = 1, True, honours
    assert download(server.url, tmp_path / "w.pt").read_bytes() == NEW
    assert server.ranges[1] == f"bytes={len(OLD) // 3}-"
    assert server.ranges[2:] == ([] if honours else [None])
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_a_file_that_changes_between_two_calls_is_downloaded_from_its_beginning(server, tmp_path):
    server.breaks = 1
    with pytest.raises(OSError, match="the connection ended"):
        download(server.url, tmp_path / "w.pt", attempts=1)
    assert (tmp_path / "w.pt.part").read_bytes() == OLD[: len(OLD) // 3]
    server.content, server.tag = NEW, '"new"'
    assert download(server.url, tmp_path / "w.pt").read_bytes() == NEW


@pytest.mark.parametrize("tag", ['W/"weak"', ""])
def test_a_server_without_exact_versions_is_asked_for_the_whole_file_again(server, tmp_path, tag):
    server.breaks, server.tag = 1, tag
    assert download(server.url, tmp_path / "w.pt").read_bytes() == OLD
    assert server.ranges == [None, None]


def test_a_partial_answer_without_its_place_is_not_appended(server, tmp_path):
    server.breaks, server.states_range = 1, False
    assert download(server.url, tmp_path / "w.pt").read_bytes() == OLD
    assert server.ranges == [None, f"bytes={len(OLD) // 3}-", None]


def test_a_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    server.breaks = 1
    with pytest.raises(UserError, match=r"could not be fetched .*put the file there by hand as .*w\.pt"):
        fetch(server.url, tmp_path / "w.pt", attempts=1)
    assert (tmp_path / "w.pt.part").is_file() and not (tmp_path / "w.pt").exists()
    (tmp_path / "w.pt.part").write_bytes(b"x" * (len(OLD) + 5))
    fetch(server.url, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").read_bytes() == OLD


@pytest.mark.parametrize(("codes", "requests"), [((503, 429), 3), ((408,), 2), ((404,), 1), ((403,), 1)])
def test_only_answers_that_may_change_are_asked_for_again(server, tmp_path, codes, requests):
    server.status = codes
    if requests > 1:
        assert download(server.url, tmp_path / "w.pt").read_bytes() == OLD
    else:
        with pytest.raises(OSError, match=str(codes[0])):
            download(server.url, tmp_path / "w.pt")
    assert len(server.ranges) == requests


def test_the_pause_that_a_server_asks_for_is_observed(server, tmp_path, monkeypatch):
    monkeypatch.undo()
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    server.status = (503,)
    download(server.url, tmp_path / "w.pt")
    server.breaks = 2
    download(server.url, tmp_path / "v.pt")
    assert pauses == [7.0, 0.5, 1.0]


def test_a_web_page_a_huge_file_and_an_empty_one_are_refused(server, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"as it was")
    for states_length in (True, False):
        server.states_length = states_length
        with pytest.raises(UserError, match="limit of 1000"):
            download(server.url, tmp_path / "w.pt", max_bytes=1000)
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="a web page came instead of the file"):
        download(server.url, tmp_path / "w.pt")
    (tmp_path / "empty").touch()
    with pytest.raises(OSError, match="the file is empty"):
        download((tmp_path / "empty").as_uri(), tmp_path / "w.pt")
    assert (tmp_path / "w.pt").read_bytes() == b"as it was"


def test_what_is_not_the_expected_file_is_refused(server, tmp_path):
    with pytest.raises(UserError, match="expected 0000"):
        fetch(server.url, tmp_path / "w.pt", sha256="0" * 64)
    assert not (tmp_path / "w.pt").exists()


def test_file_addresses_are_copied(tmp_path):
    source = tmp_path / "mit leerzeichen-雨.bin"
    source.write_bytes(OLD)
    assert download(source.as_uri(), tmp_path / "out" / "copy").read_bytes() == OLD
    with pytest.raises(FileNotFoundError):
        download((tmp_path / "absent").as_uri(), tmp_path / "copy")


def test_a_file_put_there_by_hand_is_accepted_and_absence_is_explained(tmp_path):
    path = tmp_path / "by-hand.pt"
    for url in (None, "http://127.0.0.1:9/by-hand.pt", "no address"):
        with pytest.raises(UserError, match=r"put the file there by hand as .*by-hand\.pt"):
            fetch(url, path, timeout=2)
    path.write_bytes(b"mine")
    assert fetch(None, path) == path
    digest = hashlib.sha256(b"mine").hexdigest()
    assert (tmp_path / "by-hand.pt.sha256").read_text().startswith(digest)
    with pytest.raises(UserError, match="expected 1111"):
        fetch(None, path, sha256="1" * 64)


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(server, tmp_path, monkeypatch):
    import resource

    (tmp_path / "w.pt").write_bytes(b"as it was")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"w\.pt: the disk is full"):
            download(server.url, tmp_path / "w.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.ranges) == 1, "a full disk is no reason to ask the server again"
    assert (tmp_path / "w.pt").read_bytes() == b"as it was"
    assert download(server.url, tmp_path / "w.pt").read_bytes() == OLD
    assert server.ranges[1] == "bytes=100000-"
