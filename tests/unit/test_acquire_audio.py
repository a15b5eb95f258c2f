"""AudioSet's audio: local sources, downloads, the journal under kills."""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import filelock
import h5py
import misbehaving_server as host
import numpy as np
import pytest
import soundfile

from framekd import config
from framekd.acquire import acquire_shard, export_folder, export_hdf5
from framekd.acquire.sources import Folder
from framekd.audio import decode, ffmpeg_path
from framekd.config import UserError
from framekd.manifest import Clip, Entry, State, read_manifest, write_clips
from framekd.store import Store, StoredClip, write_shard


def video(number: int) -> str:
    return f"-vid_{number:06d}"


def local(**values) -> dict:
    """Arguments of acquire_shard that only use local sources."""
    return {"folders": [], "hdf5": [], "encoding": "pcm", "download": config.Download(enabled=False), **values}


def tone(path: Path, seconds: float, *, rate: int = 16000, frequency: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate), rate)
    return path


def acquire(folder: Path, clips: list[Clip], settings: dict, **options) -> dict[str, Entry]:
    write_clips(folder / "clips.tsv", clips)
    acquire_shard(folder / "clips.tsv", 0, folder / "0000.h5", folder / "0000.manifest.tsv", **settings, **options)
    return {e.clip_id: e for e in read_manifest(folder / "0000.manifest.tsv")}


# Local sources ------------------------------------------------------------------------------------------------------


def test_naming_schemes(tmp_path):
    audio = tmp_path / "audio"
    names = ["{}", "Y{}", "{}_30", "{}_30000", "{}_30.000", "Y{}_30_40", "{}_30000_40000", "{}_30.000_40.000"]
    clips = []
    for i, name in enumerate(names):
        suffix = [".wav", ".flac", ".WAV"][i % 3]
        tone(audio / ("ab" if i % 2 else "ü") / (name.format(video(i)) + suffix), 10)
        clips.append(Clip(f"{video(i)}_30000", video(i), 30_000, 40_000, ("strong_train",), 0))
    clips.append(Clip(f"{video(99)}_30000", video(99), 30_000, 40_000, ("strong_train",), 0))
    found = acquire(tmp_path, clips, local(folders=[str(audio)]))
    assert [found[c.clip_id].state for c in clips] == [State.OK] * len(names) + [State.MISSING]
    assert all(found[c.clip_id].seconds == 10 for c in clips[:-1])


def test_a_whole_video_is_cut_and_a_clip_is_not(tmp_path):
    audio = tmp_path / "audio"
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, 60 * 16000)
    audio.mkdir()
    soundfile.write(audio / f"{video(0)}.wav", wave, 16000)
    soundfile.write(audio / f"{video(1)}.wav", wave[: 11 * 16000], 16000)
    clips = [Clip(f"{video(i)}_30000", video(i), 30_000, 40_000, ("strong_train",), 0) for i in range(2)]
    found = acquire(tmp_path, clips, local(folders=[str(audio)]))
    assert [found[c.clip_id].seconds for c in clips] == [10, 11]
    store = Store([tmp_path / "0000.h5"])
    assert np.array_equal(store[0], decode(audio / f"{video(0)}.wav")[480_000:640_000])


def test_mp3_bytes_in_hdf5_and_the_order_of_sources(tmp_path):
    mp3 = tmp_path / "a.mp3"
    subprocess.run(
        [ffmpeg_path(), "-loglevel", "error", "-y", "-i", tone(tmp_path / "a.wav", 10, rate=32000), mp3], check=True
    )
    data = np.frombuffer(mp3.read_bytes(), np.uint8)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("audio_name", data=np.array([f"Y{video(i)}.mp3".encode() for i in range(3)]))
        rows = file.create_dataset("mp3", (3,), h5py.vlen_dtype(np.uint8))
        for i in range(3):
            rows[i] = data if i < 2 else data[:0]
    tone(tmp_path / "audio" / f"{video(0)}.wav", 8)
    clips = [Clip(f"{video(i)}_5000", video(i), 5000, 15_000, ("strong_train",), 0) for i in range(3)]
    audioset = local(folders=[str(tmp_path / "audio")], hdf5=[str(tmp_path / "m.h5")])
    found = acquire(tmp_path, clips, audioset)
    assert [found[c.clip_id].source for c in clips[:2]] == ["folder", "hdf5"]
    assert found[clips[1].clip_id].seconds == pytest.approx(10, abs=0.05)
    assert found[clips[2].clip_id].state is State.CORRUPT
    # A folder that has it later is looked through again, though corrupt is final for a download.
    tone(tmp_path / "audio" / f"{video(2)}.wav", 9)
    assert acquire(tmp_path, clips, audioset)[clips[2].clip_id].state is State.OK


def test_exported_layouts_come_back_in(tmp_path):
    rng = np.random.default_rng(0)
    wave = (8000 * np.sin(2 * np.pi * 300 * np.arange(160_000) / 16000) + rng.normal(0, 50, 160_000)).astype(np.int16)
    clips = [Clip(f"{video(i)}_30500", video(i), 30_500, 40_500, ("s",), 0) for i in range(3)]
    write_shard(
        tmp_path / "a.h5", [StoredClip(c.clip_id, c.start_ms, np.roll(wave, 9 * i)) for i, c in enumerate(clips)]
    )
    first = Store([tmp_path / "a.h5"])
    for k, name in enumerate(["Y{clip_id}", "{ytid}", "{ytid}_{start}"]):
        assert export_folder([tmp_path / "a.h5"], tmp_path / f"folder-{k}", name=name) == 3
        acquire(tmp_path, clips, local(folders=[str(tmp_path / f"folder-{k}")]))
        found = Store([tmp_path / "0000.h5"])
        assert all(np.array_equal(found[i], first[i]) for i in range(3))
        for old in (tmp_path / "0000.h5", tmp_path / ".work" / "0000" / "finished.h5"):
            old.unlink()
    acquire(tmp_path, clips, local(hdf5=[str(tmp_path / "a.h5")]))  # a shard made elsewhere is a source too
    found = Store([tmp_path / "0000.h5"])
    assert found.ids == first.ids
    assert all(np.array_equal(found[i], first[i]) for i in range(3))
    for old in (tmp_path / "0000.h5", tmp_path / ".work" / "0000" / "finished.h5"):
        old.unlink()
    assert export_hdf5([tmp_path / "a.h5"], tmp_path / "mp3.h5") == 3
    acquire(tmp_path, clips, local(hdf5=[str(tmp_path / "mp3.h5")]))
    found = Store([tmp_path / "0000.h5"])
    for i in range(3):
        mine, theirs = (s[i][1000:150_000].astype(float) for s in (first, found))
        assert np.abs(mine - theirs).max() < 1000  # mp3 is lossy, but in time and level it is the same clip
    with pytest.raises(UserError, match=r"would both be same\.flac"):
        export_folder([tmp_path / "a.h5"], tmp_path / "x", name="same")


def test_odd_local_files_never_stop_the_shard(tmp_path):
    audio = tmp_path / "audio"
    tone(tmp_path / "outside" / "o.wav", 10)
    audio.mkdir()
    clips = [Clip(f"{video(i)}_0", video(i), 0, 10_000, ("strong_train",), 0) for i in range(6)]
    (audio / f"{video(0)}.wav").symlink_to(tmp_path / "outside" / "o.wav")
    (audio / f"{video(1)}.mp3").write_bytes(b"not audio")
    (audio / f"{video(2)}.wav").touch()
    tone(audio / f"{video(3)}.wav", 0.4)
    soundfile.write(audio / f"{video(4)}.wav", np.full(160_000, np.nan, np.float32), 16000, subtype="FLOAT")
    tone(audio / "deep" / "real" / "r.wav", 10)
    (audio / f"{video(5)}.wav").symlink_to(audio / "deep" / "real" / "r.wav")
    (audio / ("x" * 200 + ".wav")).touch()
    found = acquire(tmp_path, clips, local(folders=[str(audio)]))
    states = [found[c.clip_id] for c in clips]
    assert [e.state.value for e in states] == ["corrupt", "corrupt", "corrupt", "missing", "corrupt", "ok"]
    assert "leads out of the folder" in states[0].reason
    assert "non-finite samples" in states[4].reason
    with pytest.raises(UserError, match=r"audioset.folders: .* is not a folder"):
        Folder(tmp_path / "none")
    with pytest.raises(UserError, match=r"audioset.hdf5: .* no such file"):
        acquire(tmp_path, clips, local(hdf5=[str(tmp_path / "none.h5")]))


def test_shards_of_another_run_are_a_source_as_a_folder(tmp_path):
    clips = [Clip(f"{video(i)}_0", video(i), 0, 10_000, ("strong_train",), 0) for i in range(3)]
    for i in range(2):
        wave = np.full(160_000, 100 * i, np.int16)
        write_shard(tmp_path / "old" / f"{i:04d}.h5", [StoredClip(clips[i].clip_id, 0, wave)])
    found = acquire(tmp_path, clips, local(hdf5=[str(tmp_path / "old")]))
    assert [found[c.clip_id].source for c in clips] == ["store", "store", ""]
    assert Store([tmp_path / "0000.h5"])[1][0] == 100
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"audioset.hdf5: .*empty has no file \*.h5"):
        acquire(tmp_path, clips, local(hdf5=[str(tmp_path / "empty")]))


# Downloads, kills ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("media")
    out = []
    for i, (suffix, codec) in enumerate([("webm", "libopus"), ("m4a", "aac"), ("mp3", "libmp3lame")] * 2):
        path = folder / f"{i}.{suffix}"
        noise = f"anoisesrc=d=16:r=48000:a=0.2:seed={i}"
        subprocess.run(
            [ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", noise, "-c:a", codec, path], check=True
        )
        out.append(path)
    return out


def downloads(**values) -> dict:
    """Arguments of acquire_shard that only download."""
    download = config.Download(pause_seconds=0, sections=False, timeout_seconds=2, **values)
    return {"folders": [], "hdf5": [], "encoding": "pcm", "download": download}


def wanted(n: int) -> list[Clip]:
    return [Clip(f"{video(i)}_4000", video(i), 4000, 14_000, ("strong_train",), 0) for i in range(n)]


def contents(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "0000.h5").read_bytes(), (folder / "0000.manifest.tsv").read_bytes()


def test_a_rerun_fetches_nothing_even_if_the_outputs_were_removed(media, tmp_path):
    seen = []
    with host.MediaServer({video(i): media[i % 6] for i in range(5)}) as server:
        found = acquire(tmp_path, wanted(6), downloads(), url=server.url, progress=lambda *n: seen.append(n))
        assert sorted(seen) == [(i, 6) for i in range(1, 7)]
        assert found[f"{video(5)}_4000"].state is State.GONE
        first, before = contents(tmp_path), server.requests.copy()
        for remove in (True, False):
            if remove:
                (tmp_path / "0000.h5").unlink()
                (tmp_path / "0000.manifest.tsv").unlink()
            acquire(tmp_path, wanted(6), downloads(), url=server.url)
            assert contents(tmp_path) == first
            assert server.requests == before
        # Another encoding needs no download either.
        acquire(tmp_path, wanted(6), downloads() | {"encoding": "flac"}, url=server.url)
        assert server.requests == before
        assert list(Store([tmp_path / "0000.h5"]).verify()) == []


def test_clips_of_one_video_are_fetched_once(media, tmp_path):
    clips = [Clip(f"{video(0)}_{s}", video(0), s, s + 5000, ("strong_train",), 0) for s in (0, 5000, 9000)]
    with host.MediaServer({video(0): media[0]}) as server:
        found = acquire(tmp_path, clips, downloads(), url=server.url)
    assert all(e.state is State.OK for e in found.values())
    assert server.requests[video(0)] == 2  # the page and the media
    whole, store = decode(media[0]), Store([tmp_path / "0000.h5"])
    for clip in clips:
        begin = clip.start_ms * 16
        assert np.array_equal(store[store.index(clip.clip_id)], whole[begin : begin + 80_000])


def test_a_full_disk_stops_the_shard_and_the_next_run_completes_it(media, tmp_path):
    with host.MediaServer({video(i): media[0] for i in range(3)}) as server:
        acquire(tmp_path / "whole", wanted(3), downloads(), url=server.url)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        (tmp_path / "full").mkdir()
        write_clips(tmp_path / "full" / "clips.tsv", wanted(3))
        for size, clips in (
            (media[0].stat().st_size // 2, 0),
            (700_000, 2),
        ):  # in a download, in the third clip's samples
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            try:
                with pytest.raises(UserError, match="the disk is full"):
                    _acquire_in_a_process(str(tmp_path / "full"), server.url)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            lines = (tmp_path / "full" / ".work" / "0000" / "journal.jsonl").read_text().splitlines()
            assert len(lines) == clips
            assert not (tmp_path / "full" / "0000.h5").exists()
        _acquire_in_a_process(str(tmp_path / "full"), server.url)
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_two_processes_cannot_acquire_one_shard(media, tmp_path):
    (tmp_path / ".work" / "0000").mkdir(parents=True)
    with filelock.FileLock(tmp_path / ".work" / "0000" / "lock"), pytest.raises(UserError, match="another process"):
        acquire(tmp_path, wanted(1), downloads())


def test_cookies_open_what_was_behind_an_age_check(media, tmp_path):
    (tmp_path / "cookies.txt").write_text("# Netscape HTTP Cookie File\n")
    page = b"<!doctype html><html><body>members only</body></html>"
    with host.MediaServer({video(i): media[i] for i in range(3)}) as server:
        server.faults = {video(0): host.status(403), video(1): host.body(page, "text/html")}
        found = acquire(tmp_path, wanted(3), downloads(), url=server.url)
        assert [found[c.clip_id].state.value for c in wanted(3)] == ["private", "corrupt", "ok"]
        server.faults, before = {}, server.requests.copy()
        acquire(tmp_path, wanted(3), downloads(), url=server.url)
        assert server.requests == before
        cookies = downloads(cookies=str(tmp_path / "cookies.txt"))
        found = acquire(tmp_path, wanted(3), cookies, url=server.url)
    assert [found[c.clip_id].state.value for c in wanted(3)] == ["ok", "corrupt", "ok"]


def test_a_torn_journal_is_mended(media, tmp_path):
    with host.MediaServer({video(i): media[i % 6] for i in range(4)}) as server:
        acquire(tmp_path / "whole", wanted(4), downloads(), url=server.url)
        server.faults[video(3)] = host.status(429, Retry_After="9999")
        server.media[video(3)] = media[3]
        work = tmp_path / "torn" / ".work" / "0000"
        whole = read_manifest(tmp_path / "whole" / "0000.manifest.tsv")
        store = Store([tmp_path / "whole" / "0000.h5"])
        work.mkdir(parents=True)
        lines = []
        with (work / "audio.pcm").open("wb") as pcm:
            for i, e in enumerate(whole[:3]):
                row = {**{f: getattr(e, f) for f in Entry.__slots__}, "at": pcm.tell(), "samples": len(store[i])}
                data = store[i].tobytes()
                pcm.write(data[:-2] + b"\0\1" if i == 1 else data)  # the second clip's samples never reached the disk
                lines.append(json.dumps(row))
        (work / "journal.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:40])
        server.faults = {}
        before = server.requests.copy()
        acquire(tmp_path / "torn", wanted(4), downloads(), url=server.url)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert {v for v in server.requests if server.requests[v] > before[v]} == {video(1), video(3)}


def _acquire_in_a_process(folder: str, url: str) -> None:
    outputs = f"{folder}/0000.h5", f"{folder}/0000.manifest.tsv"
    acquire_shard(f"{folder}/clips.tsv", 0, *outputs, **downloads(), url=url)


@pytest.mark.slow
def test_killed_at_twenty_moments_the_store_is_the_same_to_the_byte(media, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["framekd.acquire", "framekd.download", "yt_dlp", "numpy"])
    moments = random.Random(0)
    server = host.MediaServer({video(i): media[i % 6] for i in range(5)}, {video(3): host.status(503, times=1)})
    killed = 0
    with server:
        (tmp_path / "whole").mkdir()
        began = time.monotonic()
        acquire(tmp_path / "whole", wanted(6), downloads(), url=server.url)
        length = time.monotonic() - began
        expected = contents(tmp_path / "whole")
        for k in range(20):
            folder = tmp_path / f"killed-{k}"
            folder.mkdir()
            write_clips(folder / "clips.tsv", wanted(6))
            process = context.Process(target=_acquire_in_a_process, args=(str(folder), server.url))
            process.start()
            if k % 4 == 3:  # as soon as the store is being written
                while process.is_alive() and not list(folder.glob(".0000.*.partial*")):
                    time.sleep(0.0005)
                time.sleep(moments.uniform(0, 0.01))
            else:
                time.sleep(moments.uniform(0.05, 0.8 * length))
            process.kill()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
            _acquire_in_a_process(str(folder), server.url)
            assert contents(folder) == expected
            assert not list(folder.glob("**/*.partial*"))
    assert killed >= 8  # the others had finished before their moment came
