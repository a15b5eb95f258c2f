"""The ensemble file: equal to the mean of its members, bounded in memory, resumable, and read by every spelling."""

import json
import os
import signal
import time

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from training_runs import CLASSES, SIZES, clips, start

from framekd import checkpoints
from framekd.config import UserError
from framekd.data import Arrays, chunks
from framekd.data.clips import labelled
from framekd.ensemble import SoftLabels, filenames, write_ensemble
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.train import torch_generator


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
    """The mean of logits, clip by clip and member by member, in double precision."""
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
    time.sleep(max(0.0, 1.1 - (time.time() - path.stat().st_mtime)))  # HDF5's own stamps count seconds
    again = tmp_path / "again.h5"
    write_ensemble(again, members, data, classes=data.classes, batch_size=4, device="cpu", progress=False)
    assert again.read_bytes() == path.read_bytes()


def test_one_member_at_a_time_gives_the_same(made, tmp_path):
    _, members, data = made
    folders = []
    for i, model in enumerate(members):
        note = {"step": "teacher"}
        folders.append(
            checkpoints.save_checkpoint(tmp_path / str(i), model, classes=data.classes.names, provenance=note)
        )
    write_ensemble(tmp_path / "shards.h5", folders, data, classes=data.classes, batch_size=4, resident=False, shard=5,
                   device="cpu", progress=False)  # fmt: skip
    got, ours = read(tmp_path / "shards.h5")[0], read(made[0])[0]
    np.testing.assert_array_equal(got["strong_logits"], ours["strong_logits"])


def test_members_of_other_classes_are_refused(made, tmp_path):
    _, members, data = made
    names = [f"other {i}" for i in range(CLASSES)]
    folder = checkpoints.save_checkpoint(tmp_path / "m", members[0], classes=names, provenance={})
    with pytest.raises(UserError, match="other classes"):
        write_ensemble(tmp_path / "e.h5", [folder], data, classes=data.classes, device="cpu", progress=False)
    with pytest.raises(UserError, match="train this member first"):
        write_ensemble(tmp_path / "e.h5", [tmp_path / "none"], data, classes=data.classes, device="cpu", progress=False)


class Dying(nn.Module):
    """Kills its process at the n-th batch."""

    def __init__(self, model, at):
        super().__init__()
        self.model, self.left = model, at

    def frontend(self, waveform):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model.frontend(waveform)

    def forward(self, mel):
        return self.model(mel)


def write_and_die(path, at):
    torch.set_num_threads(1)
    data = clips(11)
    members = [member(0), Dying(member(1), at)]
    write_ensemble(path, members, data, classes=data.classes, batch_size=2, device="cpu", progress=False)


def test_a_killed_pass_continues_where_it_was(tmp_path):
    path, whole = tmp_path / "e.h5", tmp_path / "whole.h5"
    process = start(write_and_die, path, 4)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not path.exists()
    assert json.loads((tmp_path / ".e.h5.json").read_text())["done"] == 6
    counted = Counting(member(1))
    data = clips(11)
    for target, members in ((path, [member(0), counted]), (whole, [member(0), Counting(member(1))])):
        write_ensemble(target, members, data, classes=data.classes, batch_size=2, device="cpu", progress=False)
    assert counted.seen == 5
    np.testing.assert_array_equal(read(path)[0]["strong_logits"], read(whole)[0]["strong_logits"])


class Counting(nn.Module):
    """Counts the clips that it scores; its weights have the names of those of `Dying`."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, 0

    def frontend(self, waveform):
        self.seen += len(waveform)
        return self.model.frontend(waveform)

    def forward(self, mel):
        return self.model(mel)


def test_another_ensemble_is_not_continued(tmp_path):
    process = start(write_and_die, tmp_path / "e.h5", 4)
    process.join(60)
    other, data = Counting(member(5)), clips(11)
    write_ensemble(tmp_path / "e.h5", [member(0), other], data, classes=data.classes, batch_size=2, device="cpu",
                   progress=False)  # fmt: skip
    assert other.seen == 11


class Constant(nn.Module):
    """Logits without work, for the measure of memory: zero but for the clip's first sample."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def frontend(self, waveform):
        return waveform

    def forward(self, mel):
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
    # Memory that is the process's own; pages of mapped files do not count, the system takes them back.
    anonymous = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))  # noqa: SIM115, PTH123
    report.put((int(anonymous.split()[1]) / 1024, most))


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    from training_runs import context

    used = {}
    for count in (256, 1024):  # both beyond the warm-up of allocators
        report = context.Queue()
        process = start(peak_memory, tmp_path / f"{count}.h5", count, report)
        used[count], most = report.get(timeout=120)
        process.join(60)
        assert most == 0.5 and (tmp_path / f"{count}.h5").stat().st_size > count * 447 * 250 * 2
    # 768 clips more are 172 MB of logits more.
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
        ("Ya", "am3p3m3p3m3_0"),  # and here all but one letter
        ("-bcdefghi_m_1_0", "-bcdefghi_m_1_0"),
        ("YYbcdefghi_x.mp3", "Ybcdefghi_x_0"),
        ("YYbcdefghi_x.mp3", "Ybcdefghi_x"),
    ],
)
def test_spellings(stored, asked, tmp_path):
    classes = ClassList.of(["a", "b"])
    soft = SoftLabels(published(tmp_path / "e.h5", ["Yzzzzzzzzzzz.mp3", stored], logits_of(2)), classes)
    assert soft.row(asked) == 1


def test_the_exact_name_is_preferred_to_a_stripped_one(tmp_path):
    classes = ClassList.of(["a", "b"])
    names = ["Yabcdefghij", "Yabcdefghij3.mp3"]
    soft = SoftLabels(published(tmp_path / "e.h5", names, logits_of(2)), classes)
    assert soft.row("abcdefghij3_0") == 1


def test_names_that_became_one_are_nobodys(tmp_path):
    """Two clips whose names were stripped to the same letters cannot be told apart."""
    classes = ClassList.of(["a", "b"])
    path = published(tmp_path / "e.h5", ["Yabcdefghij", "Yabcdefghij", "Yzzzzzzzzzzz"], logits_of(3))
    with pytest.raises(UserError, match="has no clip 'abcdefghij3_0'"):
        SoftLabels(path, classes).rows(["abcdefghij3_0"])


def test_lacking_classes_are_masked_and_others_matched_by_name(tmp_path):
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
        ({"classes": ["x", "y"]}, ["a", "b"], "none of the classes that are trained"),
        ({"classes": ["x", "x"]}, ["x", "b"], "class list has 1 classes for 2 rows"),
    ],
)
def test_other_mismatches_of_classes_are_refused(attributes, wanted, sentence, tmp_path):
    path = published(tmp_path / "e.h5", ["Yabcdefghijk.mp3"], logits_of(1), **attributes)
    with pytest.raises(UserError, match=sentence):
        SoftLabels(path, ClassList.of(wanted))


def test_clips_that_the_file_lacks(tmp_path):
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


def test_a_file_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match="no such ensemble file"):
        SoftLabels(tmp_path / "none.h5", ClassList.of(["a"]))
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["filenames"] = np.array([b"Yabc"])
    with pytest.raises(UserError, match="no dataset 'strong_logits'"):
        SoftLabels(tmp_path / "e.h5", ClassList.of(["a"]))


def test_file_names_fall_back_to_clip_ids():
    assert filenames(["abcdefghijk_0", "abcdefghijk_10000"]) == [b"abcdefghijk_0", b"abcdefghijk_10000"]
    assert filenames(["wav 1", "wav 2"]) == [b"wav 1", b"wav 2"]
