"""Bad and hostile input, a case each: one sentence, nothing lost, nothing told that is secret."""

import json
import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
import wave
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from framekd import audio, checkpoints, config, fetch, files
from framekd.acquire import acquire_shard, fetch_labels
from framekd.acquire.sources import Stored
from framekd.audio import DecodeError, decode_float
from framekd.config import LABEL_FILES, UserError
from framekd.download import Fetcher, problems, read_cookies
from framekd.labels import read_weak_segments
from framekd.manifest import Clip, State, read_manifest, write_clips
from framekd.store import Shard, StoredClip, StoreError, write_shard
from framekd.tasks import desed, hear

SECRET = "s3cret-session"
HEADER = "# Netscape HTTP Cookie File\n"
COOKIE = f".youtube.com\tTRUE\t/\tTRUE\t2000000000\tSID\t{SECRET}\n"


# Cookies and proxies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEADER + COOKIE + COOKIE.replace("\t", " ", 1), 3),
        (HEADER + COOKIE.replace("2000000000", SECRET), 2),
        (HEADER + COOKIE.replace("TRUE", "FALSE", 1), 2),
        (COOKIE, 1),
        (f'{{"SID": "{SECRET}"}}', 1),
    ],
)
def test_a_malformed_cookies_file_is_refused_without_a_word_of_it(text, line, tmp_path, capfd):
    path = tmp_path / "private-jar.txt"
    path.write_text(text)
    settings = config.Download(cookies=str(path), url="http://127.0.0.1:1/{ytid}")
    with pytest.raises(UserError, match=rf"^audioset.download.cookies: line {line} ") as caught:
        Fetcher(settings, tmp_path / "out")
    said = "".join([str(caught.value), *capfd.readouterr(), *problems(settings)])
    assert SECRET not in said and "private-jar" not in said and f"line {line} " in problems(settings)[-1]


def test_a_good_cookies_file_reaches_yt_dlp_and_is_left_as_it_is(tmp_path, capfd):
    path = tmp_path / "jar.txt"
    path.write_text(HEADER + "\n# a comment\n#HttpOnly_" + COOKIE)
    before = path.read_bytes()
    client, _ = Fetcher(config.Download(cookies=str(path)), tmp_path / "out")._client()
    assert [cookie.value for cookie in client.cookiejar] == [SECRET] and read_cookies(path) == path.read_text()
    client.close()
    assert path.read_bytes() == before and capfd.readouterr() == ("", "")


def test_only_the_javascript_runtime_that_is_chosen_is_enabled(tmp_path):
    def enabled(**settings):
        return Fetcher(config.Download(**settings), tmp_path)._options(tmp_path / "x")["js_runtimes"]

    assert enabled() == {"deno": {}} and enabled(javascript="node") == {"node": {}}


def test_a_proxy_with_a_password_is_refused_and_others_are_no_arguments(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="https_proxy and http_proxy in the environment") as caught:
        config.load({"audioset": {"download": {"proxy": f"http://me:{SECRET}@proxy:1"}}})
    assert SECRET not in str(caught.value)
    seen = SimpleNamespace()

    def run(command, **options):
        seen.command, seen.environment = command, options["env"]
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    assert not audio.fetch_span("https://x.org/a", (0, 1), tmp_path / "a.wav", proxy="http://proxy:1")
    assert not any("proxy:1" in word for word in seen.command) and seen.environment["http_proxy"] == "http://proxy:1"


# Audio --------------------------------------------------------------------------------------------------------------


def tone(path: Path, seconds: float = 2.0) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes((8000 * np.sin(np.arange(round(16_000 * seconds)) / 9)).astype("<i2").tobytes())
    return path


def test_an_ffmpeg_that_ends_badly_is_an_error_also_after_some_samples(tmp_path, monkeypatch):
    """As when it is killed for its memory: the program writes what it has, then ends with a code."""
    path = tone(tmp_path / "a.wav")
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\n"{audio.ffmpeg_path()}" "$@"\nexit 137\n')
    program.chmod(0o755)
    monkeypatch.setattr(audio, "ffmpeg_path", lambda: str(program))
    with pytest.raises(DecodeError, match=r"a\.wav: decoding ended after 2\.00 s"):
        decode_float(path)


def test_a_header_that_claims_4_gb_is_no_more_than_its_samples_and_37_hours_are_refused(tmp_path, monkeypatch):
    path = tone(tmp_path / "a.wav")
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"\xff\xff\xff\xff")
        file.seek(40)
        file.write(b"\xf0\xff\xff\xff")
    assert len(decode_float(path)) == 32_000
    with path.open("r+b") as file:  # a sparse file: 37 hours of silence on no disk at all
        file.truncate(4 << 30)
    monkeypatch.setattr(audio, "MAX_SECONDS", 20.0)
    with pytest.raises(DecodeError, match="longer than"):
        decode_float(path, timeout=60)
    assert len(decode_float(path, 3.0, 1.0)) == 16_000


def test_one_bad_input_does_not_stop_a_shard(tmp_path, monkeypatch):
    """A dead link, a start far beyond any video, and a probe that hangs; the other clips come."""
    ids = ["aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc"]
    starts = [0, 999_999_000, 0]
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / f"{ids[0]}_0.wav").symlink_to(tmp_path / "audio" / "gone.wav")
    tone(tmp_path / "audio" / f"{ids[1]}.wav", 14.0)  # a whole video, to cut from
    tone(tmp_path / "audio" / f"{ids[2]}_0.wav", 10.0)
    write_clips(
        tmp_path / "clips.tsv",
        [Clip(f"{i}_{s}", i, s, s + 10_000, ("strong_train",), 0) for i, s in zip(ids, starts)],
    )
    counts = acquire_shard(
        tmp_path / "clips.tsv", 0, tmp_path / "0.h5", tmp_path / "0.tsv",
        folders=[str(tmp_path / "audio")], hdf5=[], encoding="pcm", download=config.Download(enabled=False),
    )  # fmt: skip
    states = {entry.clip_id.rpartition("_")[0]: entry for entry in read_manifest(tmp_path / "0.tsv")}
    assert counts == {"corrupt": 2, "ok": 1} and states[ids[2]].state is State.OK
    assert "dead link" in states[ids[0]].reason and "cannot cut" in states[ids[1]].reason

    def hangs(*_, **options):
        raise subprocess.TimeoutExpired("ffmpeg", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert audio.declared_seconds(tmp_path / "audio" / f"{ids[2]}_0.wav") is None


# The store ----------------------------------------------------------------------------------------------------------


def shard(path: Path, **options) -> Path:
    clips = [StoredClip(f"{c * 11}_0", 0, np.arange(16_000, dtype=np.int16) + i) for i, c in enumerate("abc")]
    write_shard(path, clips, **options)
    return path


def test_a_chunked_copy_of_a_shard_is_refused_and_not_misread(tmp_path):
    path = shard(tmp_path / "a.h5")
    with h5py.File(path) as old, h5py.File(tmp_path / "b.h5", "w") as new:
        new.attrs.update(old.attrs)
        for name, data in old.items():
            new.create_dataset(name, data=data[:], **({"chunks": (1000,)} if name == "audio" else {}))
    with pytest.raises(StoreError, match=r"b\.h5: its audio is chunked"):
        Shard(tmp_path / "b.h5")
    assert (Shard(path)[1] == np.arange(16_000) + 1).all()


def test_another_runs_shard_is_compared_with_its_hashes(tmp_path):
    path = shard(tmp_path / "a.h5")
    clip = Clip("b" * 11 + "_0", "b" * 11, 0, 1000, ("strong_train",), 0)
    assert len(Stored(path).read(clip)) == 16_000
    with h5py.File(path) as file:
        place = file["audio"].id.get_offset() + 2 * 17_000
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\x55")
    with pytest.raises(DecodeError, match=r"clip b{11}_0 is not what was stored"):
        Stored(path).read(clip)


# Labels and downloads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["inf, 10.000", "nan, 10.000", "0.000, inf", "-1, 5", "1e308, 1e309"])
def test_impossible_times_of_a_segment_are_one_sentence(row, tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(f'# a comment\n--aaaaaaaaa, {row}, "/m/09x0r"\n')
    with pytest.raises(UserError, match=r"s\.csv: line 2: "):
        read_weak_segments(path)


def test_label_files_come_over_https_and_are_compared_with_a_configured_sum(tmp_path):
    assert all(url.startswith("https://") for url in config.AudioSet().labels_url.values())
    (tmp_path / "in").mkdir()
    for name in LABEL_FILES.values():
        (tmp_path / "in" / name).write_text("something")
    right = files.sha256_of(tmp_path / "in" / LABEL_FILES["eval"])
    out = {name: tmp_path / "out" / file for name, file in LABEL_FILES.items()}
    fetch_labels(out, labels_url={}, labels_dir=tmp_path / "in", sha256={"eval": right})
    urls = {name: (tmp_path / "in" / file).as_uri() for name, file in LABEL_FILES.items()}
    for options in ({"labels_url": {}, "labels_dir": tmp_path / "in"}, {"labels_url": urls, "labels_dir": None}):
        with pytest.raises(UserError, match="expected 0000"):
            fetch_labels({n: tmp_path / "no" / f for n, f in LABEL_FILES.items()}, sha256={"eval": "0" * 64}, **options)
        assert not (tmp_path / "no" / LABEL_FILES["eval"]).exists()


@pytest.fixture
def server():
    """A host whose /to?ADDRESS leads to ADDRESS, and whose /file is a file; /chunked breaks off."""

    class Handler(BaseHTTPRequestHandler):
        tries = 0

        def do_GET(self):
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == "/chunked" and not Handler.tries:
                Handler.tries += 1
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"ff\r\nonly so much")  # 255 bytes are announced
                self.close_connection = True
            else:
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"file")

        def log_message(self, *_): ...

    Handler.protocol_version = "HTTP/1.1"
    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    host.server_close()


def test_a_redirect_from_a_public_host_into_this_network_is_not_followed(server, tmp_path, monkeypatch):
    real = socket.getaddrinfo

    def resolve(host, port, *arguments, **options):
        if host != "public.test":
            return real(host, port, *arguments, **options)
        if port is None:  # the check sees a public address, the connection goes to the test's server
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]
        return real("127.0.0.1", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    public = server.replace("127.0.0.1", "public.test")
    for target in ("http://169.254.169.254/latest/meta-data", f"{server}/file"):
        with pytest.raises(UserError, match="which is in this network; check the address"):
            fetch.download(f"{public}/to?{target}", tmp_path / "a", attempts=1)
    assert not (tmp_path / "a").exists()
    assert fetch.download(f"{server}/to?{server}/file", tmp_path / "b").read_bytes() == b"file"
    assert fetch.download(f"{public}/to?{public}/file", tmp_path / "c").read_bytes() == b"file"


def test_a_transfer_that_breaks_within_a_chunk_is_tried_again(server, tmp_path):
    assert fetch.download(f"{server}/chunked", tmp_path / "a").read_bytes() == b"file"


# What is kept --------------------------------------------------------------------------------------------------------


def test_a_rename_is_written_to_disk_before_anything_is_removed(tmp_path, monkeypatch):
    """The folder is flushed after the rename: a power cut must not leave the old name after .resume is gone."""
    order, real = [], os.fsync

    def fsync(number):
        kind = "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"
        order.append((kind, (tmp_path / "a").exists()))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "a", "text")
    assert order == [("file", False), ("folder", True)]


@pytest.mark.parametrize(
    "note", ["", "{", "[]", "null", '{"done": 3}', "SAME:99", "SAME:-1", 'SAME:"2"', "SAME:true", "SHORT"]
)
def test_a_damaged_note_of_an_ensemble_starts_it_anew(note, tmp_path):
    from framekd.ensemble import _Target
    from framekd.labels import ClassList

    clips = SimpleNamespace(ids=[f"{c * 11}_0" for c in "abcd"])
    clips = type("Clips", (), {"ids": clips.ids, "__len__": lambda self: 4})()
    first = _Target(tmp_path / "e.h5", "same", clips, ClassList.of(["x", "y"]), 2)
    first.write(np.zeros((2, 2, 250), np.float32))
    first.handle.close()
    assert _Target(tmp_path / "e.h5", "same", clips, ClassList.of(["x", "y"]), 2).done == 2
    about = {"identity": "same", "batch_size": 2}
    if note == "SHORT":  # power was lost before the samples were on disk
        first.file.write_bytes(first.file.read_bytes()[:-3000])
    elif note.startswith("SAME:"):
        first.note.write_text(json.dumps(about | {"done": json.loads(note[5:])}))
    else:
        first.note.write_text(note)
    again = _Target(tmp_path / "e.h5", "same", clips, ClassList.of(["x", "y"]), 2)
    assert again.done == 0
    again.handle.close()


# Checkpoints, tasks, plots, caches -----------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.pt", "a.pt")
    assert checkpoints.read_weights(tmp_path / "w.zip")["a"].shape == (10,)
    for name, member in (("bomb.zip", "a.pt"), ("bomb.pt", "a/data/0")):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    for name in ("bomb.zip", "bomb.pt"):
        with pytest.raises(UserError, match=rf"{name} would unpack to 0\.1 GB"):
            checkpoints.read_weights(tmp_path / name)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"a": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": Evil()}))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match=r"refused|damaged"):
            checkpoints.read_weights(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "a/../../b.wav", "", "a\0.wav"])
def test_names_that_lead_out_of_a_tasks_folder_are_refused(name, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({name: []}))
    with pytest.raises(UserError, match="is not the name of an audio file"):
        hear.read_split(tmp_path / "train.json", SimpleNamespace())
    (tmp_path / "s.tsv").write_text(f"filename\tonset\toffset\tevent_label\n{name}\t0\t1\tx\n")
    (tmp_path / "w.tsv").write_text(f"filename\tevent_labels\n{name}\tx\n")
    for read, file in ((desed.read_strong, "s.tsv"), (desed.read_weak, "w.tsv")):
        with pytest.raises(UserError):
            read(tmp_path / file)


def test_class_names_with_dollars_are_drawn_as_they_are(tmp_path):
    from framekd.metrics import psds1
    from framekd.plots import class_bars

    name = r"$\foo$"
    result = psds1(
        np.random.default_rng(0).random((1, 250, 1)), {"a": [(1.0, 2.0, name)]}, {"a": 10.0}, [name], clips=["a"]
    )
    class_bars(result, {name: 3}).savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_a_cache_in_a_folder_of_another_user_is_not_used(tmp_path):
    """Who owns the parent folder can exchange what is in it. Run apart, because the folder is chosen by environment."""
    shared = tmp_path / "tmp"
    (shared / f"framekd-{os.getuid()}" / "numba").mkdir(parents=True)
    (shared / f"framekd-{os.getuid()}").chmod(0o777)
    code = "from framekd.metrics._compile import cache_folder; print(cache_folder())"
    environment = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "FRAMEKD_CACHE")}
    environment |= {"TMPDIR": str(shared), "XDG_CACHE_HOME": "/proc/none"}

    def folder():
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert folder().startswith(f"{shared}/framekd-numba-")
    (shared / f"framekd-{os.getuid()}").chmod(0o700)
    assert folder() == f"{shared}/framekd-{os.getuid()}/numba"
