"""Files are whole or absent: after an error, after a kill, and on a full disk."""

from __future__ import annotations

import subprocess
import sys

import pytest

from framekd.config import UserError
from framekd.files import remove_partial, replacing, sha256_of, write_json, write_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new folder" / "a.tsv"
    write_text(path, "ü\r\nb\n")
    assert path.read_bytes() == "ü\r\nb\n".encode()
    with replacing(path) as aside:
        aside.write_text("second")
        assert aside.suffix == ".tsv" and path.read_bytes() == "ü\r\nb\n".encode()
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.tsv"]
    assert sha256_of(path) == "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4"
    write_json(path, {"name": "ü"})
    assert path.read_text(encoding="utf-8") == '{\n "name": "ü"\n}\n'


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    write_text(tmp_path / "a", "first")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as aside:
        aside.write_text("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    code = "import os, sys\nfrom framekd.files import replacing\nwith replacing(sys.argv[1]) as aside:\n"
    code += "    aside.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    for name in ("a[1].h5", "b.h5"):
        assert subprocess.run([sys.executable, "-c", code, tmp_path / name]).returncode == -9
    remove_partial(tmp_path / "a[1].h5")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".b.")


WRITERS = """
import resource, sys
from pathlib import Path
import h5py
import numpy as np
from framekd.acquire import export_hdf5
from framekd.checkpoints import save_checkpoint
from framekd.config import UserError
from framekd.embeddings import write_group
from framekd.examples import Example, write_examples
from framekd.export import export
from framekd.files import replacing, write_text
from framekd.manifest import Entry, State, write_manifest
from framekd.models import build_model
from framekd.store import StoredClip, write_shard

out, given = Path(sys.argv[1]), Path(sys.argv[2])
noise = np.random.default_rng(0).integers(-9000, 9000, 160_000).astype(np.int16)
clips = [StoredClip("abcdefghijk_0", 0, noise)]
entries = [Entry(f"a_{i}", ("s",), State.OK, sha256="ab" * 32) for i in range(1000)]
example = Example("a", noise, [], np.zeros((3, 250)))
model = build_model("tiny", n_classes=3)
write_shard(given, clips)

def embeddings(path):
    with replacing(path) as aside, h5py.File(aside, "w") as file:
        write_group(file, [np.ones((100, 64))] * 2, 64)

writers = {
    "a.h5": lambda path: write_shard(path, clips),
    "b.h5": lambda path: write_shard(path, clips, encoding="flac"),
    "c.h5": lambda path: export_hdf5([given], path),
    "d.npz": lambda path: write_examples(path, [example], classes=["a", "b", "c"], title="x"),
    "e.txt": lambda path: write_text(path, "x" * 100_000),
    "f.tsv": lambda path: write_manifest(path, entries),
    "g.h5": embeddings,
    "h.pt": lambda path: export(model, path, "torch", {"model": "tiny"}),
    "model.safetensors": lambda path: save_checkpoint(path.parent, model, classes=["a", "b", "c"], provenance={}),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for name, write in writers.items():
    try:
        write(out / name)
    except UserError as error:
        assert str(error) == f"{out / name}: the disk is full; free some space and try again.", error
    else:
        raise AssertionError(f"{name} was written")
assert list(out.iterdir()) == []
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """In a process of its own: the limit of the file size holds for all that a process writes."""
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", WRITERS, tmp_path / "out", tmp_path / "given.h5"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_device_without_space_is_a_full_disk(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt: the disk is full"), replacing(tmp_path / "a.txt") as aside:
        aside.symlink_to("/dev/full")
        aside.write_text("x" * 100_000)
    assert list(tmp_path.iterdir()) == []
