"""Some hundreds of damaged inputs: whatever comes, a reader gives a value or one sentence, never a traceback."""

import io
import json
import os
import subprocess
import zipfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from framekd import hdf5
from framekd.audio import DecodeError, decode, ffmpeg_path
from framekd.checkpoints import read_spec, read_weights
from framekd.clip_soft_labels import ClipSoftLabels, read_index
from framekd.config import UserError, load, read_sources
from framekd.labels import ClassList, read_display_names, read_strong, read_weak_classes, read_weak_segments
from framekd.manifest import read_clips, read_manifest
from framekd.soft_labels import SoftLabels
from framekd.store import Shard, StoredClip, write_shard
from framekd.tasks import desed, hear

FEW = settings(
    max_examples=int(os.environ.get("FRAMEKD_FUZZ", "15")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # an input is shown as it was found: to shrink it takes minutes
)
"""FRAMEKD_FUZZ=1000 tries more of each."""
CLASSES = ClassList.of(["a", "b"])
TEXTS = {
    read_strong: "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n--aaaaaaaaa_0\t0.5\t1.25\t/m/09x0r\n",
    read_weak_segments: '# comment\n--aaaaaaaaa, 0.000, 10.000, "/m/09x0r,/m/05zppz"\n',
    read_display_names: "/m/09x0r\tSpeech\n/m/05zppz\tMale speech\n",
    read_weak_classes: 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man"\n',
    read_manifest: "clip_id\tsplits\tstate\treason\tseconds\tsha256\tsource\n"
    "aaaaaaaaaaa_0\tstrong_train\tok\t\t1.0\t00\tx\n",
    read_clips: "clip_id\tytid\tstart_ms\tend_ms\tsplits\tshard\n"
    "aaaaaaaaaaa_0\taaaaaaaaaaa\t0\t10000\tstrong_train\t0\n",
    desed.read_strong: "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.5\tDog\n",
    desed.read_weak: "filename\tevent_labels\na.wav\tDog,Cat\n",
    hear.read_vocabulary: "idx,label\n0,a\n1,b\n",
    "split": '{"a.wav": [{"label": "a", "start": 0.0, "end": 12.5}], "b.wav": []}',
}
CELLS = ["", "nan", "inf", "-1", "1e309", "../../x", "\0", "é", '"', "\t\t", "9" * 400, "/m/1", "{", "null"]


def damage(data, whole: bytes) -> bytes:
    """A file with some of its bytes changed, cut off, repeated or replaced by a typical value."""
    out = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(out) - 1)))
        match data.draw(st.integers(0, 4)):
            case 0:
                out[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case 1:
                del out[at:]
            case 2:
                out[at : at + data.draw(st.integers(0, 8))] = data.draw(st.sampled_from(CELLS)).encode()
            case 3:
                out[at:at] = out[: data.draw(st.integers(0, 64))]
            case _:
                out[at : at + 8] = data.draw(st.sampled_from([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7]))
    return bytes(out)


def survives(read, *arguments) -> None:
    """Call a reader; a UserError of one short sentence is as good as a value. Anything else fails the test."""
    try:
        read(*arguments)
    except UserError as error:
        assert str(error) and len(str(error)) < 4000


@pytest.mark.parametrize("read", TEXTS, ids=lambda read: getattr(read, "__qualname__", read))
@FEW
@given(data=st.data())
def test_damaged_tables_and_json(read, tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(damage(data, TEXTS[read].encode()))
    survives(*((hear.read_split, path, CLASSES) if read == "split" else (read, path)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(CELLS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@cache
def keys() -> list[tuple[str, ...]]:
    """The paths of all keys of config/config.yaml."""

    def below(values, path=()):
        for key, value in values.items() if isinstance(values, dict) else ():
            yield (*path, key)
            yield from below(value, (*path, key))

    return list(below(yaml.safe_load((Path(__file__).parents[2] / "config/config.yaml").read_text())))


@FEW
@given(data=st.data())
def test_a_configuration_with_any_value_at_any_key(data):
    values: dict = {}
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(keys()))
        inner = values
        for key in path:
            found = inner.get(key)
            inner[key] = inner = found if isinstance(found, dict) else {}
        inner[last] = data.draw(VALUES)
    survives(load, values)


@FEW
@given(data=st.data())
def test_damaged_yaml(tmp_path, data):
    path = tmp_path / "c.yaml"
    path.write_bytes(damage(data, (Path(__file__).parents[2] / "config/released.yaml").read_bytes()))

    def read():
        values, sources = read_sources([path])
        load(values, sources=sources)

    survives(read)


@cache
def binary(kind: str) -> bytes:
    """A small file of each kind."""
    buffer = io.BytesIO()
    tensors = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}
    if kind == "safetensors":
        return safetensors.torch.save(tensors)
    if kind == "pt":
        torch.save(tensors, buffer)
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("w.pt", binary("pt"))
    elif kind == "npz":
        np.savez(buffer, names=np.array(["aaaaaaaaaaa_0"]), logits=np.zeros((1, 2), np.float32))
    elif kind == "npy":
        np.save(buffer, np.zeros((1, 2), np.float32))
    elif kind == "pkl":
        import pickle

        pickle.dump({"aaaaaaaaaaa_0": 0}, buffer)
    elif kind == "ensemble":
        with h5py.File(buffer, "w") as file:
            file["filenames"], file["strong_logits"] = [b"Yaaaaaaaaaaa.mp3"], np.zeros((1, 2, 250), np.float16)
    elif kind == "logits":
        with h5py.File(buffer, "w") as file:
            file["names"], file["logits"] = [b"aaaaaaaaaaa_0"], np.zeros((1, 2), np.float32)
    return buffer.getvalue()


READERS = {
    "safetensors": read_weights,
    "pt": read_weights,
    "zip": read_weights,
    "npz": lambda path: ClipSoftLabels(path, ["aaaaaaaaaaa_0"], CLASSES),
    "npy": lambda path: ClipSoftLabels(path, ["aaaaaaaaaaa_0"], CLASSES, index=path.with_suffix(".pkl")),
    "pkl": read_index,
    "ensemble": lambda path: SoftLabels(path, CLASSES).rows(["aaaaaaaaaaa_0"]),
    "logits": lambda path: ClipSoftLabels(path, ["aaaaaaaaaaa_0"], CLASSES).rows(["aaaaaaaaaaa_0"]),
}


@pytest.mark.parametrize("kind", READERS)
@FEW
@given(data=st.data())
def test_damaged_weights_arrays_and_archives(kind, tmp_path, data):
    hdf5.SECONDS = 3
    suffix = {"ensemble": "h5", "logits": "h5"}.get(kind, kind)
    path = tmp_path / f"file.{suffix}"
    path.with_suffix(".pkl").write_bytes(binary("pkl"))
    path.write_bytes(damage(data, binary(kind)))
    survives(READERS[kind], path)


@FEW
@given(data=st.data())
def test_damaged_shards(tmp_path, data):
    whole = tmp_path / "whole.h5"
    if not whole.exists():
        write_shard(whole, [StoredClip("aaaaaaaaaaa_0", 0, np.arange(400, dtype=np.int16))])
    path = tmp_path / "shard.h5"
    path.write_bytes(damage(data, whole.read_bytes()))
    survives(lambda: [Shard(path)[i] for i in range(len(Shard(path)))])


@FEW
@given(data=st.data())
def test_damaged_specifications(tmp_path, data):
    (tmp_path / "spec.json").write_bytes(
        damage(data, json.dumps({"format": "framekd-checkpoint-1", "a": [1]}).encode())
    )
    survives(read_spec, tmp_path)


AUDIO = {
    "wav": ["-c:a", "pcm_s16le"],
    "flac": ["-c:a", "flac"],
    "mp3": ["-c:a", "libmp3lame"],
    "ogg": ["-c:a", "libvorbis"],
    "m4a": ["-c:a", "aac"],
}


@cache
def sound(kind: str, folder: str) -> bytes:
    """A fifth of a second of noise in a format."""
    path = Path(folder) / f"whole.{kind}"
    source = ["-f", "lavfi", "-i", "anoisesrc=d=0.2:r=16000:seed=1"]
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *source, *AUDIO[kind], path], check=True)
    return path.read_bytes()


@pytest.mark.parametrize("kind", AUDIO)
@FEW
@given(data=st.data())
def test_damaged_audio(kind, tmp_path, data):
    path = tmp_path / f"file.{kind}"
    path.write_bytes(damage(data, sound(kind, str(tmp_path))))
    try:
        samples = decode(path, timeout=20.0)
    except DecodeError as error:
        assert str(error) and len(str(error)) < 4000
    else:
        assert samples.dtype == np.int16 and samples.ndim == 1
