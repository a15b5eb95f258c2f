"""Files that the HDF5 library reads without end."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from framekd import hdf5
from framekd.clip_soft_labels import ClipSoftLabels
from framekd.config import UserError
from framekd.jobs import Job
from framekd.labels import ClassList
from framekd.pipeline.kept import key
from framekd.soft_labels import SoftLabels

CLASSES = ClassList.of(["a", "b"])


def write(path: Path, names: str, logits: str, shape: tuple[int, ...], *, variable: bool) -> Path:
    """Soft labels of one clip; its name in the heap, or an attribute there."""
    with h5py.File(path, "w") as file:
        file[names] = [b"aaaaaaaaaaa_0"] if variable else np.array([b"aaaaaaaaaaa_0"])
        file[logits] = np.zeros(shape, np.float16)
        if not variable:
            file.attrs["class_ids"], file.attrs["identity"] = ["a", "b"], "one"
    return path


def loop(path: Path) -> Path:
    """Give the free space of each heap the size 0, as a flipped bit can: the library then reads it for ever."""
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"GCOL", at + 1)) >= 0:
        item = at + 16
        while int.from_bytes(content[item : item + 2], "little"):
            item += 16 + -(-int.from_bytes(content[item + 8 : item + 16], "little") // 8) * 8
        content[item + 8 : item + 16] = bytes(8)
    assert content != path.read_bytes()
    path.write_bytes(content)
    return path


READERS = {
    "ensemble": (("filenames", "strong_logits", (1, 2, 250)), lambda path: SoftLabels(path, CLASSES)),
    "clips": (("names", "logits", (1, 2)), lambda path: ClipSoftLabels(path, ["aaaaaaaaaaa_0"], CLASSES)),
}


@pytest.mark.parametrize("variable", [True, False], ids=["in names", "in attributes"])
@pytest.mark.parametrize("kind", READERS)
def test_a_heap_that_is_a_loop_is_one_sentence(kind, variable, tmp_path, monkeypatch):
    layout, read = READERS[kind]
    path = write(tmp_path / "soft.h5", *layout, variable=variable)
    read(path)
    loop(path)
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    began = time.process_time()
    with pytest.raises(UserError, match=r"soft\.h5 is damaged \(HDF5 cannot read its names: signal"):
        read(path)
    assert time.process_time() - began < 1


def test_a_job_that_looks_whether_its_work_is_done_does_not_hang(tmp_path, monkeypatch):
    path = write(tmp_path / "soft.h5", *READERS["ensemble"][0], variable=False)
    job = Job(version=1)
    assert key(job, {"soft_labels": str(path)}) == key(job, {"soft_labels": str(path)})
    loop(path)
    monkeypatch.setattr(hdf5, "SECONDS", 1)
    with pytest.raises(UserError, match="HDF5 cannot read its names"):
        key(job, {"soft_labels": str(path)})
