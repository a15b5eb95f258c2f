"""Step 2's soft labels of clips: the files, the mixed loss, and a training that learns from them."""

import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from framekd import checkpoints
from framekd.augment import augment
from framekd.clip_soft_labels import ClipSoftLabels, check_kind, read_index, write_clip_logits
from framekd.config import Augment, UserError, WeakRecipe
from framekd.data import Arrays, Cutter, Draw, Loader, Mix, labelled
from framekd.jobs import CheckpointJob, SoftLabelsJob, Step2Job, WeakEnsembleJob
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.pipeline.checkpoints import make_checkpoints
from framekd.pipeline.ensemble import average_clips, fetch_soft_labels
from framekd.pipeline.train import train_weak
from framekd.store import StoredClip, write_shard
from framekd.train import Objective, RunOptions, Stopped, fit

CLASSES = ClassList(("/m/0a", "/m/0b", "/m/0c"), ("a", "b", "c"))
IDS = [f"vid_{i:07d}_30000" for i in range(12)]
KNOWN = [i for i in range(12) if i % 4]  # every fourth clip has no soft labels
LOGITS = np.random.default_rng(1).normal(0, 3, (len(KNOWN) + 2, 3)).astype(np.float32)


def ytid(clip):
    return clip.rsplit("_", 1)[0]


def index_of(start=2):
    """Row by YouTube id; the first rows of the file are of other clips."""
    return {ytid(IDS[i]): start + n for n, i in enumerate(KNOWN)} | {"elsewhere01": 0}


def write(folder, kind, *, logits=LOGITS, index=None):
    """A file of soft labels: (path of the logits, path of the index or None)."""
    path, index = folder / f"logits{kind}", index_of() if index is None else index
    names = np.array([next((name for name, row in index.items() if row == i), f"none{i}") for i in range(len(logits))])
    if kind == ".npy":
        np.save(path, logits)
        (folder / "index.pkl").write_bytes(pickle.dumps(index))
        return path, folder / "index.pkl"
    if kind == ".npz":
        np.savez(path, names=names, logits=logits)
    else:
        write_clip_logits(path, names, logits, CLASSES)
    return path, None


def opened(folder, kind=".npy", clips=IDS, classes=CLASSES, **given):
    path, index = write(folder, kind, **given)
    return ClipSoftLabels(path, clips, classes, index=index)


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".npy", ".npz", ".h5"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    soft = opened(tmp_path, kind)
    wanted = [IDS[5], IDS[0], IDS[1], IDS[5]]
    found = soft.rows(wanted)
    assert found.shape == (4, 3) and soft.known == len(KNOWN)
    assert found[1].isnan().all() and not found[[0, 2, 3]].isnan().any()
    row = index_of()
    expected = 1 / (1 + np.exp(-LOGITS[[row[ytid(c)] for c in (IDS[5], IDS[1], IDS[5])]].astype(float)))
    np.testing.assert_allclose(found[[0, 2, 3]], expected, rtol=1e-6)


@pytest.mark.parametrize("spelling", ["{}", "Y{}", "Y{}.mp3", "{}_30000"])
def test_clips_are_found_by_every_spelling(tmp_path, spelling):
    index = {spelling.format(name): row for name, row in index_of().items()}
    if spelling == "{}_30000":
        index = {name: row for name, row in index.items()}
    assert opened(tmp_path, index=index).known == len(KNOWN)


def test_a_stripped_name_that_two_clips_could_have_is_neither_ones(tmp_path):
    clips = ["abcdefghijm_0", "abcdefghijp_0", "othervideo1_0"]
    index = {"Yabcdefghij": 0, "Yothervideo1": 1}
    assert opened(tmp_path, clips=clips, index=index).known == 1


def test_classes_are_matched_by_the_files_own_list(tmp_path):
    path, _ = write(tmp_path, ".h5")
    turned = ClassList(CLASSES.mids[::-1], CLASSES.names[::-1])
    straight, other = (ClipSoftLabels(path, IDS, classes).rows(IDS[1:4]) for classes in (CLASSES, turned))
    assert torch.equal(straight.flip(1), other)


def with_nan():
    logits = LOGITS.copy()
    logits[4, 1] = np.nan
    return logits


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"logits": LOGITS[:, :2]}, ["logits.npy", "2 classes, but 3 are trained"]),
        ({"logits": with_nan()}, ["logits.npy", "1 clips are NaN", "vid_0000003_30000", "take another file"]),
        ({"index": {"elsewhere01": 0}}, ["none of the 12 training clips", "vid_0000000_30000"]),
        ({"index": {ytid(IDS[0]): 99}}, ["index.pkl", "row 99", "has 11 rows"]),
        ({"index": {ytid(IDS[0]): -1}}, ["row -1"]),
        ({"logits": LOGITS[:, 0]}, ["expected floating-point logits [clips, classes]", "(11,)"]),
        ({"logits": LOGITS.astype(int)}, ["expected floating-point logits", "int64"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(tmp_path, given, words):
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **given)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)


def test_nan_in_rows_of_other_clips_is_no_mistake(tmp_path):
    logits = LOGITS.copy()
    logits[0] = np.nan
    assert opened(tmp_path, logits=logits).known == len(KNOWN)


def test_a_file_of_other_classes_names_them(tmp_path):
    path, _ = write(tmp_path, ".h5")
    with pytest.raises(UserError, match="none of the trained classes; its first are /m/0a"):
        ClipSoftLabels(path, IDS, ClassList.of(["x", "y", "z"]))


@pytest.mark.parametrize("kind", [".npy", ".npz", ".h5", ".pkl"])
def test_a_file_that_is_no_such_file_is_refused(tmp_path, kind):
    path, index = write(tmp_path, ".npy")
    broken = tmp_path / f"broken{kind}"
    broken.write_bytes(b"<html>not found</html>")
    paths = (path, broken) if kind == ".pkl" else (broken, index if kind == ".npy" else None)
    with pytest.raises(UserError, match=f"broken{kind}"):
        ClipSoftLabels(paths[0], IDS, CLASSES, index=paths[1])
    with pytest.raises(UserError, match=f"broken{kind}"):
        check_kind(broken, str(broken))
    with pytest.raises(UserError, match=r"absent\.h5: no such file of soft labels; correct the path"):
        ClipSoftLabels(tmp_path / "absent.h5", IDS, CLASSES)


def test_a_truncated_file_is_refused(tmp_path):
    path, index = write(tmp_path, ".npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"logits\.npy is no whole \.npy file"):
        ClipSoftLabels(path, IDS, CLASSES, index=index)


def test_a_compressed_npz_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", names=np.array([ytid(IDS[0])]), logits=LOGITS[:1])
    with pytest.raises(UserError, match=r"c\.npz is compressed.*numpy\.savez"):
        ClipSoftLabels(tmp_path / "c.npz", IDS, CLASSES)


def test_names_of_pickled_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", names=np.array([Attack(tmp_path / "ran")], object), logits=LOGITS[:1])
    with pytest.raises(UserError, match=r"o\.npz is no \.npz file of plain arrays"):
        ClipSoftLabels(tmp_path / "o.npz", IDS, CLASSES)
    assert not (tmp_path / "ran").exists()


# The pickled index ------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_index_of_any_protocol_is_read(tmp_path, protocol):
    (tmp_path / "i.pkl").write_bytes(pickle.dumps(index_of(), protocol))
    assert read_index(tmp_path / "i.pkl") == index_of()


@pytest.mark.parametrize("place", ["alone", "key", "value", "after"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_an_index_does_not_run(tmp_path, place, protocol):
    attack = Attack(tmp_path / "ran")
    value = {"alone": attack, "key": {(attack,): 1}, "value": {"a": attack}, "after": {"a": 1, "b": [attack]}}[place]
    (tmp_path / "i.pkl").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UserError, match=r"i\.pkl asks for code \(.*mkdir\), which is not run: expected a pickled dict"):
        read_index(tmp_path / "i.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [[1, 2], {1: 2}, {"a": 1.0}, {"a": True}, {"a": None}, {"a": {"b": 1}}, "a", {b"a": 1}],
    ids=repr,
)
def test_an_index_of_anything_else_is_refused(tmp_path, value):
    (tmp_path / "i.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(
        UserError, match=r"i\.pkl holds something else: expected a pickled dict of YouTube ids to plain"
    ):
        read_index(tmp_path / "i.pkl")


def test_numpys_integers_ask_for_code_and_are_refused(tmp_path):
    (tmp_path / "i.pkl").write_bytes(pickle.dumps({"a": np.int64(1)}))
    with pytest.raises(UserError, match=r"asks for code.*plain integers"):
        read_index(tmp_path / "i.pkl")


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_a_broken_index_is_refused(tmp_path, cut):
    (tmp_path / "i.pkl").write_bytes(pickle.dumps(index_of())[:cut])
    with pytest.raises(UserError, match=r"i\.pkl cannot be read"):
        read_index(tmp_path / "i.pkl")


# Memory -----------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys, numpy as np
from framekd.clip_soft_labels import ClipSoftLabels
from framekd.labels import ClassList
rows, folder = int(sys.argv[1]), sys.argv[2]
ids = [f"{i:011d}_0" for i in range(0, rows, 40)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
soft = ClipSoftLabels(f"{folder}/l{sys.argv[3]}", ids, ClassList.of(map(str, range(527))),
                      index=f"{folder}/i.pkl" if sys.argv[3] == ".npy" else None)
for i in range(0, len(ids), 256):
    assert soft.rows(ids[i : i + 256]).shape[1] == 527
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", [".npy", ".h5"])
def test_a_file_of_gigabytes_is_never_in_memory_whole(tmp_path, kind):
    rows = 300_000  # 0.6 GB, of which nothing is written: the file has holes
    names = [f"{i:011d}" for i in range(rows)]
    if kind == ".npy":
        np.lib.format.open_memmap(tmp_path / "l.npy", "w+", np.float32, (rows, 527)).flush()
        (tmp_path / "i.pkl").write_bytes(pickle.dumps({name: i for i, name in enumerate(names)}))
    else:
        with h5py.File(tmp_path / "l.h5", "w") as file:
            file["names"] = np.array([name.encode() for name in names])
            file.create_dataset("logits", (rows, 527), np.float32)
    run = [sys.executable, "-c", MEMORY, str(rows), str(tmp_path), kind]
    grown = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    assert grown < 300, f"{grown} MB"


# The loss ---------------------------------------------------------------------------------------------------------


def weak_clips(n=12):
    rng = np.random.default_rng(0)
    audio = Arrays([rng.integers(-3000, 3000, 32_000).astype(np.int16) for _ in range(n)])
    marks = {name: [CLASSES.mids[c] for c in rng.choice(3, 1 + i % 2, replace=False)] for i, name in enumerate(IDS[:n])}
    return labelled(IDS[:n], audio, CLASSES, clip_labels=marks)


def two_terms(logits, labels, soft, parts, weight):
    """The definition: 0.1 labels + 0.9 soft labels, each a sum over the clips of a mix by their parts.

    `parts` is [rows, clips]; rows of `soft` are NaN for clips without soft labels, whose soft term is 0.
    """
    total = torch.zeros((), dtype=torch.float64)
    for row, mine in zip(logits, parts):
        for part, label, target in zip(mine, labels, soft):
            if part > 0:
                total += (1 - weight) * part * F.binary_cross_entropy_with_logits(row, label)
                if not target.isnan().any():
                    total += weight * part * F.binary_cross_entropy_with_logits(row, target)
    return total / len(logits)


@pytest.mark.parametrize("wavmix", [False, True])
@pytest.mark.parametrize("mixup", [False, True])
def test_the_mixed_loss_is_the_two_term_definition(tmp_path, mixup, wavmix):
    soft, clips = opened(tmp_path), weak_clips()
    n, rng = len(clips), np.random.default_rng(5)
    parts = torch.eye(n, dtype=torch.float64)
    mix = None
    if wavmix:
        rows = np.array([0, 1, 2, 5, 8, 9])
        share = rng.uniform(0.5, 1, len(rows)).astype(np.float32)
        mix = Mix(rows, np.array([3, 4, 6, 8, 4, 0]), np.zeros(len(rows), np.int64), share)
        for row, partner, own in zip(rows, mix.partners, share.astype(float)):
            parts[row] = own * torch.eye(n)[row] + (1 - own) * torch.eye(n)[partner]
    batch = Cutter(clips, 50, soft=soft).batch(Draw(np.arange(n), np.zeros(n, np.int64), mix))
    if mixup:
        settings = Augment(mixup=1.0, mixup_alpha=0.3)
        mel = torch.eye(n)[:, None, :, None].expand(n, 1, n, 2)  # shows by itself what was mixed into each row
        mel, batch = augment(mel, batch, settings, generator=np.random.default_rng(3))
        parts = mel[:, 0, :, 0].double() @ parts
        assert (parts > 0).sum() > n
    logits = torch.from_numpy(rng.normal(0, 2, (n, 3))).requires_grad_()
    value = Objective("weak", 0.9)(torch.empty(n, 3, 50), logits, batch, slice(0, n))
    labels = Cutter(clips, 50).batch(Draw(np.arange(n), np.zeros(n, np.int64))).clip_labels
    expected = two_terms(logits, labels.double(), soft.rows(IDS).double(), parts, 0.9)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (value, expected))
    assert torch.allclose(ours, theirs, atol=1e-6)
    halves = [Objective("weak", 0.9)(torch.empty(6, 3, 50), logits[s], batch, s) for s in (slice(0, 6), slice(6, n))]
    assert (sum(halves) / 2).item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_batch_without_any_soft_labels_is_the_label_term_alone(tmp_path):
    soft, clips = opened(tmp_path), weak_clips()
    rows = np.array([0, 4, 8])
    batch = Cutter(clips, 50, soft=soft).batch(Draw(rows, np.zeros(3, np.int64)))
    logits = torch.randn(3, 3)
    value = Objective("weak", 0.9)(torch.empty(3, 3, 50), logits, batch, slice(0, 3))
    assert float(value) == pytest.approx(0.1 * float(F.binary_cross_entropy_with_logits(logits, batch.clip_labels)))
    assert not batch.soft_share.any() and not batch.soft_labels.isnan().any()


# Gain -------------------------------------------------------------------------------------------------------------


def test_gain_scales_each_waveform_within_its_limits():
    clips = weak_clips()
    values = {"epochs": 2, "epoch_clips": 12, "batch_size": 12}
    plain, loud = (Loader(clips, WeakRecipe(**values, augment={"gain_db": db}), seed=1, n_frames=50) for db in (0, 6))
    a, b, again = plain.batch(1), loud.batch(1), loud.batch(1)
    assert a.ids == b.ids and torch.equal(b.waveform, again.waveform)
    ratio = b.waveform.norm(dim=1) / a.waveform.norm(dim=1)
    db = 20 * ratio.log10()
    assert torch.allclose(b.waveform, a.waveform * ratio[:, None], atol=1e-6)
    assert db.abs().max() <= 6 and db.min() < -1 and db.max() > 1 and len(db.unique()) == 12


def test_gain_acts_on_both_clips_of_a_mix():
    clips = weak_clips()
    mix = Mix(np.array([0]), np.array([1]), np.zeros(1, np.int64), np.array([0.75], np.float32))
    one, two = clips.waveform(0) / 32768.0, clips.waveform(1) / 32768.0
    gained = replace(mix, gain=np.array([0.5], np.float32))
    batch = Cutter(clips, 50).batch(Draw(np.array([0]), np.zeros(1, np.int64), gained, np.array([2.0], np.float32)))
    expected = 0.75 * 2 * (one - one.mean()) + 0.25 * 0.5 * (two - two.mean())
    np.testing.assert_allclose(batch.waveform[0].numpy(), expected, atol=1e-5)


# The stage --------------------------------------------------------------------------------------------------------

SIZES = {"width": 32, "depth": 1, "heads": 2, "rnn_hidden": 16}


@pytest.fixture(scope="module")
def audioset(tmp_path_factory):
    """The inputs of a Step 2 job, without soft labels."""
    folder = tmp_path_factory.mktemp("weak")
    rng = np.random.default_rng(0)
    ids = [*IDS, "zideval0001_0", "zideval0002_0"]
    write_shard(
        folder / "0000.h5", [StoredClip(n, 30_000, rng.integers(-3000, 3000, 160_000).astype(np.int16)) for n in ids]
    )
    head = "# a\n# b\n# YTID, start_seconds, end_seconds, positive_labels\n"
    lines = [f'{ytid(name)}, 30.000, 40.000, "{CLASSES.mids[i % 3]}"\n' for i, name in enumerate(IDS)]
    (folder / "train.csv").write_text(head + "".join(lines))
    held = [f'{name}, 0.000, 10.000, "{CLASSES.mids[i]}"\n' for i, name in enumerate(("zideval0001", "zideval0002"))]
    (folder / "eval.csv").write_text(head + "".join(held))
    rows = "".join(f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(zip(CLASSES.mids, CLASSES.names)))
    (folder / "classes.csv").write_text(f"index,mid,display_name\n{rows}")
    start = folder / "step1" / "tiny" / "model.safetensors"
    models = {"models": ["tiny"], "sizes": {"tiny": SIZES}, "front_ends": {"tiny": {}}}
    job = CheckpointJob(version=1, step="step1", **models, published={}, seed=3)
    make_checkpoints(job, weights=[str(start)])
    return {
        "stores": [str(folder / "0000.h5")],
        "segments": [str(folder / "train.csv")],
        "eval_segments": str(folder / "eval.csv"),
        "class_labels": str(folder / "classes.csv"),
        "weights": [str(start)],
        "soft_labels": [],
        "rates": [],
    }


def trained(inputs, out, **recipe):
    values = {"epochs": 2, "epoch_clips": 12, "batch_size": 4, "warmup_steps": 2, "learning_rate": 1e-2, **recipe}
    job = Step2Job(version=1, recipes={"tiny": WeakRecipe(**values)}, seed=1)
    train_weak(job, inputs=inputs, weights=[str(out / "model.safetensors")])
    return checkpoints.load_checkpoint(out)[0].state_dict(), checkpoints.read_spec(out)["provenance"]


def test_step_2_learns_from_soft_labels_and_says_how_many_clips_have_some(audioset, tmp_path, capsys):
    weights = []
    for value in (-6.0, 6.0):
        folder = tmp_path / str(value)
        folder.mkdir()
        files = write(folder, ".npy", logits=np.full_like(LOGITS, value))
        inputs = {**audioset, "soft_labels": [str(path) for path in files]}
        state, about = trained(inputs, folder / "out", distillation_weight=0.9, augment={"mixup": 1.0, "wavmix": 0.5})
        weights.append(state)
        assert "soft labels for 9 of 12 training clips; the other 3 are trained on labels" in capsys.readouterr().out
        assert about["soft_labels"] == {"file": str(files[0]), "clips": 9}
    assert all(bool(value.isfinite().all()) for value in weights[0].values())
    assert (weights[1]["clip_head.bias"] > weights[0]["clip_head.bias"]).all()


def test_step_2_without_distillation_reads_no_soft_labels(audioset, tmp_path):
    assert trained(audioset, tmp_path / "a")[1]["soft_labels"] is None


def test_a_wrong_file_stops_step_2_before_any_training(audioset, tmp_path):
    files = write(tmp_path, ".npy", logits=with_nan())
    with pytest.raises(UserError, match="are NaN"):
        trained({**audioset, "soft_labels": [str(path) for path in files]}, tmp_path / "o", distillation_weight=0.9)
    assert [path.name for path in (tmp_path / "o").iterdir()] == [".finished"], "more than the lease is there"


def test_models_of_the_run_make_soft_labels_that_step_2_can_read(audioset, tmp_path):
    members = [tmp_path / name for name in ("x", "y")]
    for i, folder in enumerate(members):
        trained(audioset, folder, learning_rate=1e-2 * (i + 1))
    inputs = {**audioset, "weights": [str(folder / "model.safetensors") for folder in members]}
    average_clips(WeakEnsembleJob(version=1), inputs=inputs, out=str(tmp_path / "e" / "clips.h5"))
    soft = ClipSoftLabels(tmp_path / "e" / "clips.h5", IDS, CLASSES)
    assert soft.known == 12
    models = [checkpoints.load_checkpoint(folder)[0].eval() for folder in members]
    from framekd.data import weak_set

    clips = weak_set(audioset["stores"], audioset["segments"], CLASSES)
    wave = torch.from_numpy(np.stack([clips.waveform(i) for i in range(3)]) / np.float32(32768))
    with torch.no_grad():
        expected = sum(model(model.frontend(wave))[1] for model in models) / 2
    assert torch.allclose(soft.rows(clips.ids[:3]), expected.sigmoid(), atol=1e-5)
    state, _ = trained(
        {**audioset, "soft_labels": [str(tmp_path / "e" / "clips.h5")]}, tmp_path / "z", distillation_weight=0.9
    )
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_a_stopped_training_continues_to_the_same_weights(tmp_path):
    path, index = write(tmp_path, ".npy")
    recipe = WeakRecipe(epochs=2, epoch_clips=12, batch_size=4, warmup_steps=2, distillation_weight=0.9)
    ended = []
    for name, limits in (("whole", [None]), ("stopped", [0.0, 0.0, None])):
        for limit in limits:
            clips = weak_clips()
            soft = ClipSoftLabels(path, clips.ids, CLASSES, index=index)
            model = build_model("tiny", n_classes=3, sizes=SIZES).init_weights(torch.Generator().manual_seed(1))
            options = RunOptions(time_limit=limit, progress=False)
            loader = Loader(clips, recipe, seed=1, n_frames=50, soft=soft)
            about = {"lr": 1e-2, "seed": 1, "objective": Objective("weak", 0.9), "directory": tmp_path / name}
            with nullcontext() if limit is None else pytest.raises(Stopped):
                fit(model, loader, recipe, **about, options=options)
        ended.append(model.state_dict())
    assert all(torch.equal(value, ended[1][key]) for key, value in ended[0].items())


@pytest.mark.parametrize("kind", [".npy", ".pkl", ".npz"])
def test_files_are_fetched_and_checked_by_their_kind(tmp_path, kind):
    path, index = write(tmp_path, ".npz" if kind == ".npz" else ".npy")
    source = index if kind == ".pkl" else path
    job = SoftLabelsJob(version=1, url=source.as_uri(), sha256=None)
    out = tmp_path / "kept" / source.name
    fetch_soft_labels(job, out=str(out))
    assert out.read_bytes() == source.read_bytes() and Path(f"{out}.sha256").is_file()
