"""Archives from anywhere: what they may hold, and what is refused in one sentence."""

from __future__ import annotations

import io
import random
import resource
import stat
import tarfile
import zipfile

import pytest
from task_archives import content, tar, zipped

from framekd import unpack as unpacking
from framekd.config import UserError
from framekd.unpack import unpack

FILES = {"a/one.txt": b"1" * 5000, "a/b/two.txt": b"2", "three.txt": b""}


@pytest.mark.parametrize("pack", [tar, zipped])
def test_files_are_unpacked_whole_or_chosen_and_renamed(pack, tmp_path):
    (tmp_path / "x").write_bytes(pack(FILES))
    assert unpack(tmp_path / "x", tmp_path / "all") == sorted(FILES) and content(tmp_path / "all") == FILES
    chosen = unpack(tmp_path / "x", tmp_path / "some", lambda name: "two" if name.endswith("two.txt") else None)
    assert chosen == ["two"] and content(tmp_path / "some") == {"two": b"2"}


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        *(
            (pack({name: b"x"}), "leads out")
            for pack in (tar, zipped)
            for name in ("../x", "a/../../x", "/tmp/x", "a\\x")
        ),
        (tar({}, member("l", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
        (tar({"a": b"x"}, member("l", tarfile.LNKTYPE, "a")), "is a link"),
        (tar({}, member("p", tarfile.FIFOTYPE)), "special file"),
        (linked(), "is a link"),
        (tar({"a": b"x", "a/b": b"y"}), "cannot be unpacked"),
        (tar({"a": b"x", "./a": b"y"}), "is in it twice"),
        (b"<html>no archive</html>", "no archive"),
        (b"", "no archive"),
    ],
)
def test_what_is_no_plain_archive_is_one_sentence_and_writes_nothing_outside(data, words, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        unpack(tmp_path / "x", tmp_path / "deep" / "folder")
    assert "\n" not in str(caught.value) and str(tmp_path / "x") in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"x", "deep"}
    assert {path.name for path in (tmp_path / "deep").rglob("*")} <= {"folder", "a"}


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_archive_is_one_sentence(pack, share, tmp_path):
    data = pack({"noise": random.Random(0).randbytes(50_000), "more": b"m" * 1000})
    (tmp_path / "x").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="broken, incomplete or no archive"):
        unpack(tmp_path / "x", tmp_path / "out")


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_damaged_archive_is_one_sentence(pack, tmp_path):
    data = bytearray(pack({"noise": random.Random(0).randbytes(50_000)}))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match="broken, incomplete or no archive"):
        unpack(tmp_path / "x", tmp_path / "out")


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_bomb_is_refused_before_it_fills_the_disk(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "FREE", 1000)
    (tmp_path / "x").write_bytes(pack({"zeros": b"\0" * (8 << 20)}))
    with pytest.raises(UserError, match="would unpack to more than"):
        unpack(tmp_path / "x", tmp_path / "out")
    assert not (tmp_path / "out" / "zeros").exists()
    monkeypatch.setattr(unpacking, "MOST_FILES", 2)
    (tmp_path / "x").write_bytes(pack(FILES))
    with pytest.raises(UserError, match="2 files"):
        unpack(tmp_path / "x", tmp_path / "out")


def test_a_full_disk_is_one_sentence(tmp_path):
    (tmp_path / "x").write_bytes(tar({"large": b"x" * 300_000}))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="the disk is full while it is unpacked"):
            unpack(tmp_path / "x", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
