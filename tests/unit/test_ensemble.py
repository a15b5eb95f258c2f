"""The ensemble file: the mean of its members, in bounded memory, resumable; soft labels are found by any spelling."""

import json
import os
import signal
import time
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn
from training_runs import CLASSES, SIZES, clips, start

from framekd import checkpoints, ensemble
from framekd.config import UserError
from framekd.data import Arrays, chunks, labelled
from framekd.ensemble import filenames, write_ensemble
from framekd.inference import batch_logits
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.soft_labels import SoftLabels
from framekd.train import torch_generator


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Child processes use one thread; results are byte-equal only with the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def member(seed):
    return build_model("tiny", n_classes=CLASSES, sizes=SIZES).init_weights(torch_generator(seed)).eval()


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}, dict(file.attrs)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    data = clips(11, seconds=2.0)
    members = [member(seed) for seed in range(3)]
    path = tmp_path_factory.mktemp("made") / "ensemble.h5"
    write_ensemble(path, members, data, classes=data.classes, batch_size=4, device="cpu", progress=False)
    return path, members, data


def expected(members, data):
    """The mean of the members' logits in double precision, one clip at a time."""
    rows = []
    for batch in chunks(data, 1):
        with torch.no_grad():
            rows.append(sum(m(m.frontend(batch.waveform))[0][0].double() for m in members) / len(members))
    return torch.stack(rows).numpy()


def test_the_file_is_the_mean_of_its_members(made):
    path, members, data = made
    content, about = read(path)
    assert content["strong_logits"].shape == (11, CLASSES, 250) and content["strong_logits"].dtype == np.float16
    np.testing.assert_allclose(content["strong_logits"], expected(members, data), atol=2e-3)
    assert [name.decode() for name in content["filenames"]] == [f"Yclip{i:07d}.mp3" for i in range(11)]
    assert [name.decode() for name in content["clip_ids"]] == data.ids
    assert list(about["classes"]) == list(data.classes.names)
    assert sorted(p.name for p in path.parent.iterdir()) == ["ensemble.h5"]


def test_the_same_logits_are_the_same_bytes_at_another_time(made, tmp_path):
    path, members, data = made
    time.sleep(max(0.0, 1.1 - (time.time() - path.stat().st_mtime)))  # HDF5 stamps whole seconds
    again = tmp_path / "again.h5"
    write_ensemble(again, members, data, classes=data.classes, batch_size=4, device="cpu", progress=False)
    assert again.read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def folders(made, tmp_path_factory):
    """Checkpoint directories of the members."""
    _, members, data = made
    root = tmp_path_factory.mktemp("members")
    return [
        checkpoints.save_checkpoint(root / str(i), model, classes=data.classes.names, provenance={})
        for i, model in enumerate(members)
    ]


def test_members_that_are_loaded_give_the_same_bytes_from_the_same_batches(made, folders, tmp_path, monkeypatch):
    data, seen = made[2], []

    def watched(models, batches, **options):
        for batch, found in batch_logits(models, batches, **options):
            seen.append(tuple(batch.ids))
            yield batch, found

    monkeypatch.setattr(ensemble, "batch_logits", watched)
    options = dict(classes=data.classes, batch_size=4, device="cpu", progress=False)
    loaded = write_ensemble(tmp_path / "loaded.h5", folders, data, **options)
    assert seen == [tuple(data.ids[0:4]), tuple(data.ids[4:8]), tuple(data.ids[8:11])]
    np.testing.assert_array_equal(read(loaded)[0]["strong_logits"], read(made[0])[0]["strong_logits"])


def test_other_batches_give_the_same_within_one_float16_step(made, folders, tmp_path):
    data = made[2]
    write_ensemble(tmp_path / "e.h5", folders, data, classes=data.classes, batch_size=3, device="cpu", progress=False)
    got, ours = read(tmp_path / "e.h5")[0]["strong_logits"], read(made[0])[0]["strong_logits"]
    step = np.spacing(np.maximum(abs(got), abs(ours)))
    assert (abs(got.astype(np.float32) - ours.astype(np.float32)) <= step).all()


def test_members_of_other_classes_are_refused(made, tmp_path):
    _, members, data = made
    names = [f"other {i}" for i in range(CLASSES)]
    folder = checkpoints.save_checkpoint(tmp_path / "m", members[0], classes=names, provenance={})
    with pytest.raises(UserError, match="other classes"):
        write_ensemble(tmp_path / "e.h5", [folder], data, classes=data.classes, device="cpu", progress=False)
    with pytest.raises(UserError, match="train this member first"):
        write_ensemble(tmp_path / "e.h5", [tmp_path / "none"], data, classes=data.classes, device="cpu", progress=False)


def test_two_processes_do_not_write_the_same_file(tmp_path):
    with FileLock(tmp_path / ".e.h5.lock"), pytest.raises(UserError, match=r"another process is writing .*e\.h5"):
        write_with(tmp_path / "e.h5", member(1))


class Counting(nn.Module):
    """A model that counts the clips that it has scored, and kills its process at batch `die_at`."""

    name = "counting"
    encoder = SimpleNamespace(front_end=SimpleNamespace(switched={}))

    def __init__(self, model, die_at=None):
        super().__init__()
        self.model, self.seen, self.batches, self.die_at = model, 0, 0, die_at

    def frontend(self, waveform):
        self.batches += 1
        if self.batches == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += len(waveform)
        return self.model.frontend(waveform)

    def forward(self, mel, *, outputs):
        return self.model(mel, outputs=outputs)


def write_with(path, counting, batch_size=2):
    data = clips(11)
    members = [member(0), counting]
    write_ensemble(path, members, data, classes=data.classes, batch_size=batch_size, device="cpu", progress=False)


def write_and_die(path):
    torch.set_num_threads(1)
    write_with(path, Counting(member(1), die_at=4))


@pytest.fixture
def killed(tmp_path):
    """The path of an ensemble whose pass over 11 clips was killed after three batches of two."""
    path = tmp_path / "e.h5"
    process = start(write_and_die, path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not path.exists()
    assert json.loads((tmp_path / ".e.h5.json").read_text())["done"] == 6
    return path


def test_a_killed_pass_continues_where_it_was(killed, tmp_path):
    rest, every = Counting(member(1)), Counting(member(1))
    write_with(killed, rest)
    write_with(tmp_path / "whole.h5", every)
    assert (rest.seen, every.seen) == (5, 11)
    assert killed.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(("seed", "batch_size"), [(5, 2), (1, 4)], ids=["another member", "other batches"])
def test_another_pass_is_not_continued(killed, seed, batch_size):
    counting = Counting(member(seed))
    write_with(killed, counting, batch_size)
    assert counting.seen == 11


class Constant(nn.Module):
    """A model without work, to measure memory: every logit is the clip's first sample."""

    name = "constant"
    encoder = SimpleNamespace(front_end=SimpleNamespace(switched={}))

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def frontend(self, waveform):
        return waveform

    def forward(self, mel, *, outputs):
        return mel[:, :1, None].expand(-1, self.classes, 250).contiguous(), mel[:, :1]


def peak_memory(path, count, report):
    torch.set_num_threads(1)
    classes = ClassList.of([f"class {i}" for i in range(447)])
    one = np.zeros(1600, np.int16)
    ids = [f"clip{i:07d}_0" for i in range(count)]
    data = labelled(ids, Arrays([one] * count), classes, events={})
    write_ensemble(path, [Constant(447)] * 3, data, classes=classes, batch_size=16, device="cpu", progress=False)
    soft, most = SoftLabels(path, classes), 0.0
    for first in range(0, count, 16):
        most = max(most, float(soft.rows(ids[first : first + 16]).max()))
    # Private memory only: the system can drop the pages of mapped files.
    anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))  # noqa: SIM115, PTH123
    report.put((int(anonymous.split()[1]) / 1024, most))


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    from training_runs import context

    used = {}
    for count in (256, 1024):  # both are enough for allocators to reach their steady state
        report = context.Queue()
        process = start(peak_memory, tmp_path / f"{count}.h5", count, report)
        used[count], most = report.get(timeout=120)
        process.join(60)
        assert most == 0.5 and (tmp_path / f"{count}.h5").stat().st_size > count * 447 * 250 * 2
    # The logits of 768 clips are 172 MB.
    assert used[1024] - used[256] < 172 / 2, used


# ---------------------------------------------------------------------------------------------------- soft labels


def published(path, names, logits, **attributes):
    with h5py.File(path, "w") as file:
        file["filenames"] = np.array([name.encode() for name in names], dtype="S")
        file["strong_logits"] = logits.astype(np.float16)
        file.attrs.update(attributes)
    return path


def logits_of(count, classes=2):
    return np.arange(count, dtype=np.float32)[:, None, None] / 4 + np.zeros((1, classes, 250), np.float32)


def test_rows_are_probabilities_in_the_order_asked_for(made):
    path, _, data = made
    soft = SoftLabels(path, data.classes)
    ids = [data.ids[i] for i in (7, 0, 7)]
    logits = torch.from_numpy(read(path)[0]["strong_logits"][[7, 0, 7]]).float()
    got = soft.rows(ids)
    assert got.dtype == torch.float32 and torch.equal(got, logits.sigmoid()) and bool(soft.mask.all())


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("Yabcdefghi_m.mp3", "abcdefghi_m_30000"),
        ("Yabcdefghi_m.mp3", "abcdefghi_m"),
        ("Yabcdefghi_m.mp3", "Yabcdefghi_m.mp3"),
        ("Yabcdefghi_m", "abcdefghi_m_30000"),
        ("abcdefghi_m", "Yabcdefghi_m.mp3"),
        ("Yabcdefghi_", "abcdefghi_m_30000"),  # rstrip(".mp3") took the m with it
        ("abcdefghi_", "abcdefghi_m_30000"),
        ("Ym3p3m3p3m3a", "m3p3m3p3m3a_0"),
        ("Ya", "am3p3m3p3m3_0"),  # all letters but one
        ("-bcdefghi_m_1_0", "-bcdefghi_m_1_0"),
        ("YYbcdefghi_x.mp3", "Ybcdefghi_x_0"),
        ("YYbcdefghi_x.mp3", "Ybcdefghi_x"),
    ],
)
def test_a_clip_is_found_by_each_spelling(stored, asked, tmp_path):
    classes = ClassList.of(["a", "b"])
    soft = SoftLabels(published(tmp_path / "e.h5", ["Yzzzzzzzzzzz.mp3", stored], logits_of(2)), classes)
    assert soft.row(asked) == 1


def test_the_exact_name_is_preferred_to_a_stripped_one(tmp_path):
    classes = ClassList.of(["a", "b"])
    names = ["Yabcdefghij", "Yabcdefghij3.mp3"]
    soft = SoftLabels(published(tmp_path / "e.h5", names, logits_of(2)), classes)
    assert soft.row("abcdefghij3_0") == 1


def test_names_that_are_equal_once_stripped_belong_to_no_clip(tmp_path):
    classes = ClassList.of(["a", "b"])
    path = published(tmp_path / "e.h5", ["Yabcdefghij", "Yabcdefghij", "Yzzzzzzzzzzz"], logits_of(3))
    with pytest.raises(UserError, match="has no clip 'abcdefghij3_0'"):
        SoftLabels(path, classes).rows(["abcdefghij3_0"])


def test_missing_classes_are_masked_and_others_matched_by_name(tmp_path):
    logits = np.stack([np.full(250, 1.0), np.full(250, -2.0)])[None]
    path = published(tmp_path / "e.h5", ["Yabcdefghijk.mp3"], logits, classes=["dog", "cat"])
    soft = SoftLabels(path, ClassList.of(["cat", "cow", "dog"]))
    row = soft.rows(["abcdefghijk_0"])[0, :, 0]
    assert soft.mask.tolist() == [True, False, True]
    assert row[[0, 2]].tolist() == torch.tensor([-2.0, 1.0]).sigmoid().tolist() and row[1].isnan()


@pytest.mark.parametrize(
    ("attributes", "wanted", "sentence"),
    [
        ({}, ["a", "b", "c"], "no class list and 2 classes, but 3 are trained"),
        ({"classes": ["x", "y"]}, ["a", "b"], "none of the trained classes"),
        ({"classes": ["x", "x"]}, ["x", "b"], "class list has 1 classes for 2 rows"),
    ],
)
def test_other_mismatches_of_classes_are_refused(attributes, wanted, sentence, tmp_path):
    path = published(tmp_path / "e.h5", ["Yabcdefghijk.mp3"], logits_of(1), **attributes)
    with pytest.raises(UserError, match=sentence):
        SoftLabels(path, ClassList.of(wanted))


def test_missing_clips_are_refused_or_nan(tmp_path):
    classes = ClassList.of(["a", "b"])
    path = published(tmp_path / "e.h5", ["Yabcdefghijk.mp3"], logits_of(1))
    ids = ["abcdefghijk_0", "lmnopqrstuv_0"]
    with pytest.raises(UserError, match="has no clip 'lmnopqrstuv_0'"):
        SoftLabels(path, classes).rows(ids)
    rows = SoftLabels(path, classes, missing_clips="labels").rows(ids)
    assert rows[0].isfinite().all() and rows[1].isnan().all()


def test_compressed_files_are_read_too(tmp_path):
    values = logits_of(5)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["filenames"] = np.array([f"Yabcdefghij{i}.mp3".encode() for i in range(5)])
        file.create_dataset("strong_logits", data=values.astype(np.float16), chunks=(1, 2, 250), compression="gzip")
    soft = SoftLabels(tmp_path / "e.h5", ClassList.of(["a", "b"]))
    got = soft.rows(["abcdefghij4_0", "abcdefghij1_0"])
    assert torch.equal(got, torch.from_numpy(values[[4, 1]]).sigmoid())


def test_a_file_that_is_not_an_ensemble_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such ensemble file"):
        SoftLabels(tmp_path / "none.h5", ClassList.of(["a"]))
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["filenames"] = np.array([b"Yabc"])
    with pytest.raises(UserError, match="no dataset 'strong_logits'"):
        SoftLabels(tmp_path / "e.h5", ClassList.of(["a"]))


def test_file_names_fall_back_to_clip_ids():
    assert filenames(["abcdefghijk_0", "abcdefghijk_10000"]) == [b"abcdefghijk_0", b"abcdefghijk_10000"]
    assert filenames(["wav 1", "wav 2"]) == [b"wav 1", b"wav 2"]
