"""The server that replaces YouTube: pages, ranges, missing videos; and yt-dlp as a client."""

import http.client
import json

import pytest

from framekd.config import UserError
from framekd.miniature import serve

DATA = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path):
    (tmp_path / "abc_DEF-123.m4a").write_bytes(DATA)
    (tmp_path / "secret.txt").write_text("not in the index")
    (tmp_path / "index.json").write_text(json.dumps({"abc_DEF-123": "abc_DEF-123.m4a", "gone_______": "gone.webm"}))
    with serve(tmp_path) as running:
        yield running


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


@pytest.mark.parametrize("path", ["/watch?v=abc_DEF-123", "/media/abc_DEF-123.m4a"])
def test_a_video_is_its_media(server, path):
    answer, body = ask(server, path)
    assert (answer.status, body) == (200, DATA)
    assert answer.headers["Content-Type"] == "audio/mp4" and answer.headers["Accept-Ranges"] == "bytes"


def test_head_has_the_length_and_no_body(server):
    answer, body = ask(server, "/watch?v=abc_DEF-123", "HEAD")
    assert answer.status == 200 and answer.headers["Content-Length"] == str(len(DATA)) and body == b""


@pytest.mark.parametrize(
    ("span", "expected"),
    [("bytes=0-9", DATA[:10]), ("bytes=100-", DATA[100:]), ("bytes=-5", DATA[-5:]), ("bytes=10-999999", DATA[10:])],
)
def test_ranges(server, span, expected):
    answer, body = ask(server, "/watch?v=abc_DEF-123", Range=span)
    assert answer.status == 206 and body == expected
    first = DATA.index(expected) if span != "bytes=-5" else len(DATA) - 5
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(DATA)}"


def test_a_range_past_the_end_is_refused(server):
    answer, _ = ask(server, "/watch?v=abc_DEF-123", Range=f"bytes={len(DATA)}-")
    assert answer.status == 416 and answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize(
    "path",
    [
        "/watch?v=gone_______",
        "/watch?v=unknown",
        "/watch",
        "/",
        "/media/secret.txt",
        "/media/../index.json",
        "/index.json",
    ],
)
def test_what_is_not_a_video_of_the_index_is_404(server, path):
    assert ask(server, path)[0].status == 404


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"index\.json: not found"):
        serve(tmp_path)


def test_the_port_is_free_again(tmp_path):
    (tmp_path / "index.json").write_text("{}")
    with serve(tmp_path) as running:
        port = running.port
    with serve(tmp_path, port=port) as again:
        assert again.url == f"http://127.0.0.1:{port}/watch?v={{ytid}}"


def test_yt_dlp_fetches_a_video_and_fails_for_a_missing_one(server, tmp_path):
    yt_dlp = pytest.importorskip("yt_dlp")
    options = {"quiet": True, "no_warnings": True, "noprogress": True, "outtmpl": f"{tmp_path}/out.%(ext)s"}
    with yt_dlp.YoutubeDL(options) as ydl:
        info = ydl.extract_info(server.url.format(ytid="abc_DEF-123"))
        with open(info["requested_downloads"][0]["filepath"], "rb") as file:  # noqa: PTH123
            assert file.read() == DATA
        with pytest.raises(yt_dlp.utils.DownloadError, match="404"):
            ydl.extract_info(server.url.format(ytid="gone_______"))
