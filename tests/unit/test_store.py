"""The store: what goes in comes out, equal content is equal bytes, and a damaged shard is noticed."""

from __future__ import annotations

import pickle
import time

import h5py
import numpy as np
import pytest

from framekd.data import Arrays
from framekd.store import Shard, Store, StoredClip, StoreError, digest, write_shard


def clips(n: int = 7, *, first: int = 0, seed: int = 0) -> list[StoredClip]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 4000, n)
    sizes[0] = 0
    return [
        StoredClip(f"_clip-{first + i:05d}_0", i * 1000, rng.integers(-(2**15), 2**15, size).astype(np.int16), "folder")
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("encoding", ["pcm", "flac"])
def test_what_goes_in_comes_out(encoding, tmp_path):
    first, second = clips(5), clips(4, first=5, seed=1)
    write_shard(tmp_path / "0.h5", iter(first), encoding=encoding)
    write_shard(tmp_path / "1.h5", iter(second), encoding=encoding)
    store = Store([tmp_path / "0.h5", tmp_path / "1.h5"])
    assert store.ids == [c.clip_id for c in first + second]
    for clip in first + second:
        found = store[store.index(clip.clip_id)]
        assert found.dtype == np.int16
        assert np.array_equal(found, clip.samples)
    assert store.durations == pytest.approx([len(c.samples) / 16000 for c in first + second])
    assert list(store.verify()) == []
    assert "_clip-00003_0" in store
    assert "nothing_0" not in store
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 - what a worker process gets
    assert np.array_equal(again[3], store[3])


@pytest.mark.parametrize("encodings", [("pcm", "flac"), ("flac", "pcm")])
def test_cuts_are_the_samples_from_a_start_on_with_zeros_after_the_end(encodings, tmp_path):
    """Of clips of several shards in any order, some twice, some that end before the cut does or before it begins."""
    parts = [clips(5), clips(4, first=5, seed=1)]
    for k, (encoding, part) in enumerate(zip(encodings, parts)):
        write_shard(tmp_path / f"{k}.h5", iter(part), encoding=encoding)
    store = Store([tmp_path / "0.h5", tmp_path / "1.h5"])
    whole = [clip.samples for clip in parts[0] + parts[1]]
    chosen = np.array([8, 0, 3, 3, 6, 1, 5, 7, 2, 4])
    starts = np.array([0, 0, 17, 3999, 5000, 640, 1, 1280, len(whole[2]), 2])
    found = np.full((len(chosen), 1500), 99, np.int16)
    store.read(chosen, starts, found)
    wanted = [np.pad(whole[i][start:], (0, 1500))[:1500] for i, start in zip(chosen, starts)]
    np.testing.assert_array_equal(found, wanted)
    in_memory = np.full_like(found, 99)
    Arrays(whole).read(chosen, starts, in_memory)
    np.testing.assert_array_equal(in_memory, wanted)


@pytest.mark.parametrize("encoding", ["pcm", "flac"])
def test_equal_content_is_equal_bytes_at_any_time(encoding, tmp_path):
    def write(name: str) -> tuple[bytes, bytes]:
        write_shard(tmp_path / f"{name}.h5", clips(), encoding=encoding)
        with h5py.File(tmp_path / f"{name}-stamped.h5", "w", libver=("v110", "v110")) as file:
            file.create_dataset("audio", data=np.zeros(3), track_times=True)
        return (tmp_path / f"{name}.h5").read_bytes(), (tmp_path / f"{name}-stamped.h5").read_bytes()

    first, stamped = write("a")
    time.sleep(1.1)  # HDF5 stores whole seconds
    second, stamped_later = write("b")
    assert first == second
    assert stamped != stamped_later, "time stamps would have been noticed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-stamped.h5", "a.h5", "b-stamped.h5", "b.h5"]


def test_pcm_is_mapped_and_not_writable(tmp_path):
    write_shard(tmp_path / "a.h5", clips())
    shard = Shard(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="read-only"):
        shard[1][:] = 0
    assert np.shares_memory(shard[1], shard.audio)


def test_an_empty_shard(tmp_path):
    assert write_shard(tmp_path / "a.h5", []) == 0
    assert len(Store([tmp_path / "a.h5"])) == 0
    assert len(Store([])) == 0


def test_order_and_type_are_checked_and_nothing_half_made_stays(tmp_path):
    a, b = clips(2)
    with pytest.raises(StoreError, match="must come after"):
        write_shard(tmp_path / "a.h5", [b, a])
    with pytest.raises(StoreError, match="must come after"):
        write_shard(tmp_path / "a.h5", [a, a])
    with pytest.raises(StoreError, match="expected int16"):
        write_shard(tmp_path / "a.h5", [StoredClip("x", 0, np.zeros(3))])
    with pytest.raises(StoreError, match="encoding"):
        write_shard(tmp_path / "a.h5", [], encoding="opus")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, clips())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"a\.h5: .*(delete|not a complete)"):
        Shard(path)
    path.write_bytes(b"<html>")
    with pytest.raises(StoreError, match="not a complete audio shard"):
        Shard(path)
    with pytest.raises(StoreError, match="no such shard"):
        Shard(tmp_path / "none.h5")
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["audio"][100] += 1
    assert [line.split(": ", 1)[1] for line in Store([path]).verify()] == [
        "clip _clip-00001_0 is not what was stored (SHA-256 differs)"
    ]
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "other"
    with pytest.raises(StoreError, match="not an audio shard of this project"):
        Shard(path)


def test_a_clip_in_two_shards_is_refused(tmp_path):
    write_shard(tmp_path / "a.h5", clips())
    write_shard(tmp_path / "b.h5", clips())
    with pytest.raises(StoreError, match="occurs in two shards"):
        Store([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_the_digest_is_of_little_endian_samples():
    samples = np.array([1, -2, 300], np.int16)
    assert digest(samples) == digest(samples.astype(">i2"))
