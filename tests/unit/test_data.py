"""Batches depend on seed and step only; labels, cuts, mixing and sampling follow their definitions."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from framekd.config import Augment, TrainRecipe, UserError
from framekd.data import (
    Arrays,
    Batch,
    ClipSet,
    Cutter,
    Draw,
    Loader,
    MixedLoader,
    chunks,
    clip_set,
    concatenate,
    labelled,
    strong_set,
    weak_set,
    windows,
)
from framekd.labels import ClassList
from framekd.store import StoredClip, write_shard

CLASSES = ClassList(("/m/a", "/m/b", "/m/c"), ("dog", "bell", "rain"))
SAMPLES = 160_000


def clip_name(i: int) -> str:
    return f"_clip-{i:05d}_{1000 * i}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two shards of 20 clips (one short, one of 11 s), strong labels for clips 0-11, weak ones for all."""
    path = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    sizes = [SAMPLES] * 20
    sizes[3], sizes[5] = 70_001, 176_000
    stored = [
        StoredClip(clip_name(i), 1000 * i, rng.integers(-20_000, 20_000, n).astype(np.int16) + np.int16(100 * i))
        for i, n in enumerate(sizes)
    ]
    write_shard(path / "0.h5", stored[::2])
    write_shard(path / "1.h5", stored[1::2], encoding="flac")
    rows = []
    for i in range(12):
        rows += [(i, 0.5, 1.02, "/m/a"), (i, 0.9, 2.0, "/m/a"), (i, 9.0, 10.0, "/m/b"), (i, 2.0, 3.0, "/m/zz")]
        rows += [(i, 2.01, 2.03, "/m/a"), (i, 3.005, 3.01, "/m/c")] if i % 2 else []
    header = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    lines = [f"{clip_name(i)}\t{a}\t{b}\t{mid}\n" for i, a, b, mid in rows]
    (path / "strong.tsv").write_text(header + "".join(lines) + f"{clip_name(90)}\t0\t1\t/m/a\n")
    weak = [f'{clip_name(i).rsplit("_", 1)[0]}, {i}.000, {i + 10}.000, "/m/a,/m/{"bc"[i % 2]}"\n' for i in range(20)]
    (path / "weak.csv").write_text("# comment\n" + "".join(weak))
    return path


def shards(folder: Path) -> list[Path]:
    return [folder / "0.h5", folder / "1.h5"]


@pytest.fixture(scope="module")
def strong(folder) -> ClipSet:
    return strong_set(shards(folder), folder / "strong.tsv", CLASSES)


@pytest.fixture(scope="module")
def weak(folder) -> ClipSet:
    return weak_set(shards(folder), folder / "weak.csv", CLASSES)


def recipe(**values) -> TrainRecipe:
    augment = values.pop("augment", {})
    return TrainRecipe(**{"batch_size": 8, "epoch_clips": 20, **values}, augment=Augment(**augment))


def same(a: Batch, b: Batch) -> bool:
    names = ("waveform", "starts", "lengths", "frame_labels", "clip_labels", "soft_labels", "has_frame_labels")
    pairs = [(getattr(a, n), getattr(b, n)) for n in names]
    return a.ids == b.ids and all(x is y is None or torch.equal(x, y) for x, y in pairs)


class Soft:
    """Soft labels that differ from clip to clip."""

    def rows(self, ids):
        return np.stack([np.full((3, 250), int(name.rsplit("_", 1)[1]) / 20_000, np.float32) for name in ids])


def test_sets_hold_the_stored_clips_sorted_by_id(strong, weak, folder):
    assert strong.ids == [clip_name(i) for i in range(12)]
    assert weak.ids == [clip_name(i) for i in range(20)]
    assert strong.durations[3] == 70_001 / 16_000
    assert strong.ground_truth()[clip_name(1)] == [
        (0.5, 2.0, "dog"),
        (2.01, 2.03, "dog"),
        (3.005, 3.01, "rain"),
        (9.0, 10.0, "bell"),
    ]
    with pytest.raises(UserError, match="1 of 13 clips are not in the store"):
        strong_set(shards(folder), folder / "strong.tsv", CLASSES, drop_missing=False)
    with pytest.raises(UserError, match="none of its 13 clips"):
        strong_set([], folder / "strong.tsv", CLASSES)


def test_targets_follow_the_definition(strong):
    batch = next(iter(chunks(strong, 12)))
    assert batch.waveform.shape == (12, SAMPLES)
    assert batch.waveform.dtype == torch.float32
    expected = torch.zeros(3, 250)
    expected[0, 12:50] = expected[1, 225:250] = 1  # 0.5-2.0 s merged
    assert torch.equal(batch.frame_labels[0], expected)
    expected[0, 50:51] = expected[2, 75:76] = 1
    assert torch.equal(batch.frame_labels[1], expected)
    assert batch.clip_labels[:2].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.lengths.tolist()[3:6] == [70_001, SAMPLES, SAMPLES]
    assert (batch.waveform[3, 70_001:] == 0).all()
    raw = strong.waveform(4).astype(np.float32) / 32768
    assert np.array_equal(batch.waveform[4].numpy(), raw)


def test_weak_batches_have_clip_labels_only(weak):
    batch = Loader(weak, recipe(), seed=0).batch(0)
    assert batch.frame_labels is None
    assert not batch.has_frame_labels.any()
    rows = {name: row for name, row in zip(batch.ids, batch.clip_labels.tolist())}
    assert all(row == [1, int(int(n[6:11]) % 2 == 0), int(int(n[6:11]) % 2)] for n, row in rows.items())


@pytest.mark.parametrize("options", [{}, {"sampler": "balanced"}, {"sampler": "balanced", "replacement": False}])
def test_batches_depend_on_seed_and_step_only(strong, options):
    made = recipe(**options, augment={"wavmix": 0.5})
    loader = Loader(strong, made, seed=3)
    forward = list(loader.batches(0, 7, prefetch=2))
    again = Loader(strong, made, seed=3)
    for step in (6, 0, 3, 5):
        assert same(again.batch(step), forward[step])
    assert all(same(a, b) for a, b in zip(loader.batches(2, 7, prefetch=0), forward[2:]))
    assert not same(Loader(strong, made, seed=4).batch(0), forward[0])
    assert [len(b) for b in forward] == [8, 8, 4, 8, 8, 4, 8]


def test_uniform_epochs_are_permutations(strong):
    loader = Loader(strong, recipe(epoch_clips=24), seed=0)
    first, second = loader.order(0).tolist(), loader.order(1).tolist()
    assert sorted(first[:12]) == sorted(first[12:]) == list(range(12))
    assert first != second


def draw_counts(clips: ClipSet, **options) -> np.ndarray:
    made = recipe(sampler="balanced", epoch_clips=20_000, **options)
    return np.bincount(Loader(clips, made, seed=0).order(0), minlength=len(clips))


def test_balanced_sampling_follows_the_weights(strong, weak):
    clip, label, amount = strong.activity()
    frames = np.bincount(label, weights=amount, minlength=3)
    assert frames.tolist() == [38 * 12 + 6, 25 * 12, 6]
    weights = np.array([1000 / (30 + frames) @ np.bincount(label[clip == i], amount[clip == i], 3) for i in range(12)])
    found = draw_counts(strong) / 20_000
    assert found == pytest.approx(weights / weights.sum(), rel=0.12)
    assert np.bincount(weak.activity()[1]).tolist() == [20, 10, 10]
    assert draw_counts(weak, sampler_offset=100.0) / 20_000 == pytest.approx(np.full(20, 1 / 20), rel=0.15)


def test_without_replacement_every_clip_is_drawn_once_and_heavy_ones_first(strong):
    made = recipe(sampler="balanced", replacement=False, epoch_clips=12)
    loader = Loader(strong, made, seed=0)
    orders = np.array([loader.order(e) for e in range(2000)])
    assert (np.sort(orders, 1) == np.arange(12)).all()
    share = loader._weights / loader._weights.sum()
    assert np.bincount(orders[:, 0], minlength=12) / 2000 == pytest.approx(share, abs=0.025)


def test_long_clips_are_cut_on_the_grid_and_labels_move(strong, folder):
    long = strong.select([5])
    loader = Loader(long, recipe(epoch_clips=64, batch_size=64), seed=0)
    batch = loader.batch(0)
    starts = batch.starts.tolist()
    assert min(starts) >= 0
    assert max(starts) <= 25
    assert len(set(starts)) > 10
    whole = long.waveform(0).astype(np.float32) / 32768
    for k, start in enumerate(starts):
        assert np.array_equal(batch.waveform[k].numpy(), whole[start * 640 : start * 640 + SAMPLES])
        row = np.zeros(250)
        row[max(0, 12 - start) : 50 - start] = row[50 - start] = 1
        assert np.array_equal(batch.frame_labels[k, 0].numpy(), row)
    for other in (
        Loader(long, recipe(random_crop=False), seed=0),
        Loader(long, recipe(), seed=0, soft=Soft()),
    ):
        assert not other.batch(0).starts.any()
    assert not next(iter(chunks(long, 4))).starts.any()


def test_waveform_mixing(strong):
    made = recipe(epoch_clips=12, batch_size=12, random_crop=False, augment={"wavmix": 1.0})
    mixed = Loader(strong, made, seed=1, soft=Soft()).batch(0)
    plain = Loader(strong, made.model_copy(update={"augment": Augment()}), seed=1, soft=Soft()).batch(0)
    assert mixed.ids == plain.ids
    assert mixed.waveform.mean(1).abs().max() < 1e-6
    everything = Cutter(strong, soft=Soft()).batch(Draw(np.arange(12), np.zeros(12, np.int64)))
    centred = everything.waveform - everything.waveform.mean(1, keepdim=True)
    for k, name in enumerate(mixed.ids):
        i = strong.ids.index(name)
        # Find the partner and the share from the waveform; all labels must agree with them.
        errors = []
        for j in range(12):
            rest = mixed.waveform[k] - centred[i]
            step = centred[j] - centred[i]
            share = float(rest @ step / (step @ step).clamp(min=1e-9))
            errors.append((float((rest - share * step).norm()), j, 1 - share))
        error, j, share = min(errors)
        assert error < 1e-2
        if i == j:
            continue
        assert 0.5 <= share <= 1
        for field in ("frame_labels", "clip_labels", "soft_labels"):
            mine, theirs = getattr(everything, field)[i], getattr(everything, field)[j]
            assert torch.allclose(getattr(mixed, field)[k], share * mine + (1 - share) * theirs, atol=1e-3), field
    half = Loader(strong, recipe(epoch_clips=4000, batch_size=400, augment={"wavmix": 0.5}), seed=0)
    drawn = [half._mix(400, np.random.default_rng(s)) for s in range(10)]
    assert sum(len(m.rows) for m in drawn) / 4000 == pytest.approx(0.5, abs=0.03)
    assert min(m.share.min() for m in drawn) >= 0.5


def test_mixed_targets_are_at_most_one_and_agree_with_the_clip_labels(strong):
    made = recipe(epoch_clips=96, batch_size=96, augment={"wavmix": 1.0})
    batch = Loader(strong, made, seed=0).batch(0)
    strongest, whole = batch.frame_labels.amax(2), batch.clip_labels
    assert strongest.max() <= 1 + 1e-6
    assert whole.max() <= 1 + 1e-6
    # A class of one of the two clips has the share of that clip everywhere.
    one = (whole > 0) & (whole < 1 - 1e-6)
    assert one.sum() > 20
    assert torch.allclose(strongest[one], whole[one], atol=1e-6)
    # A class of both clips has at least the larger share in some frame.
    both = whole >= 1 - 1e-6
    assert both.sum() > 20
    assert (strongest[both] >= 0.5).all()


def test_strong_and_weak_in_one_batch(strong, weak):
    a, b = Loader(strong, recipe(batch_size=4), seed=0), Loader(weak, recipe(batch_size=3), seed=0)
    batch = MixedLoader([a, b]).batch(2)
    assert len(batch) == 7
    assert batch.has_frame_labels.tolist() == [True] * 4 + [False] * 3
    assert batch.frame_labels.shape == (7, 3, 250)
    assert not batch.frame_labels[4:].any()
    assert torch.equal(batch.clip_labels[4:], b.batch(2).clip_labels)
    assert torch.equal(batch[:4].waveform, a.batch(2).waveform)
    with pytest.raises(ValueError, match="in all parts of a batch or in none"):
        concatenate([a.batch(0), Loader(strong, recipe(), seed=0, soft=Soft()).batch(0)])


def test_soft_labels_belong_to_their_clips(strong):
    batch = Loader(strong, recipe(), seed=0, soft=Soft()).batch(1)
    assert batch.soft_labels.shape == (8, 3, 250)
    for name, row in zip(batch.ids, batch.soft_labels):
        assert torch.allclose(row, torch.tensor(int(name.rsplit("_", 1)[1]) / 20_000))


def test_resident_audio_gives_the_same_batches(strong):
    made = recipe(augment={"wavmix": 0.5})
    a, b = (Loader(strong, made, seed=0, audio_on=place) for place in ("host", "device"))
    b.move(torch.device("cpu"))
    assert b.gather(0).mine.audio is None
    for step in range(4):
        assert same(a.batch(step), b.batch(step))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("audio_on", ["host", "device"])
def test_a_gpu_gives_the_same_batches(strong, audio_on):
    made = recipe(augment={"wavmix": 0.5})
    a = Loader(strong, made, seed=0, soft=Soft())
    b = Loader(strong, made, seed=0, soft=Soft(), audio_on=audio_on)
    for step, theirs in enumerate(b.batches(0, 4, device="cuda")):
        mine = a.batch(step)
        assert theirs.waveform.device.type == "cuda"
        assert theirs.ids == mine.ids
        for name in ("waveform", "frame_labels", "clip_labels", "soft_labels", "starts", "lengths"):
            assert torch.allclose(getattr(mine, name), getattr(theirs, name).cpu(), atol=1e-5)


def test_windows_cover_long_clips_in_order():
    wave = (np.arange(20 * 16000) % 20_000).astype(np.int16)
    clips = labelled(["a", "b"], Arrays([wave, wave[:1000]]), CLASSES, events={"a": [(11.0, 12.0, "/m/b")]})
    found = list(windows(clips, 2, n_frames=100))
    assert [name for b in found for name in b.ids] == ["a"] * 5 + ["b"]
    assert torch.cat([b.starts for b in found]).tolist() == [0, 100, 200, 300, 400, 0]
    joined = torch.cat([w for b in found for w in b.waveform])[: len(wave)]
    assert np.array_equal(joined.numpy(), wave.astype(np.float32) / 32768)
    frames = torch.cat([f for b in found for f in b.frame_labels][:5], dim=1)
    assert frames[1].nonzero().flatten().tolist() == list(range(275, 300))


def test_clips_of_any_length_are_cut_at_random():
    wave = np.random.default_rng(0).integers(-9000, 9000, 30 * 16_000).astype(np.int16)
    clips = labelled(["long"], Arrays([wave]), CLASSES, events={"long": [(0.0, 30.0, "/m/a")]})
    batch = Loader(clips, recipe(epoch_clips=40, batch_size=40), seed=0).batch(0)
    assert batch.starts.max() > 300
    assert (batch.frame_labels[:, 0] == 1).all()
    assert batch.lengths.tolist() == [SAMPLES] * 40
    with pytest.raises(UserError, match="long: class 'bee' is not in the class list"):
        labelled(["long"], Arrays([wave]), CLASSES, events={"long": [(0, 1, "bee")]})


def test_a_loader_counts_the_steps_of_the_whole_training(strong, weak):
    made = TrainRecipe(epochs=3, epoch_clips=20, batch_size=8)
    loader = Loader(strong, made, seed=0)
    assert (loader.steps_per_epoch, loader.steps) == (3, 9)
    assert loader.steps == made.steps()
    assert MixedLoader([loader, Loader(weak, made, seed=1)]).steps == 9


def test_a_selection_has_the_labels_of_its_clips(strong):
    part = strong.select([7, 2])
    assert part.ids == [clip_name(7), clip_name(2)]
    assert part.ground_truth() == {name: strong.ground_truth()[name] for name in part.ids}
    whole, some = next(iter(chunks(strong, 12))), next(iter(chunks(part, 12)))
    assert torch.equal(some.frame_labels, whole.frame_labels[[7, 2]])


def test_an_error_in_the_thread_reaches_the_caller(strong):
    class Broken:
        def rows(self, ids):
            raise KeyError("no soft labels of this clip")

    with pytest.raises(KeyError, match="no soft labels"):
        list(Loader(strong, recipe(), seed=0, soft=Broken()).batches(0, 3))
    stream = Loader(strong, recipe(), seed=0).batches(0, 1000)
    next(stream)
    stream.close()  # ends the thread


def _worker(clips: ClipSet, queue) -> None:
    queue.put((os.getpid(), [int(clips.waveform(i).astype(np.int64).sum()) for i in range(len(clips))]))


def test_a_set_travels_to_other_processes(strong):
    """Each process opens the shards itself, whether it got the set by fork or by pickle."""
    mine = [int(strong.waveform(i).astype(np.int64).sum()) for i in range(len(strong))]
    again = pickle.loads(pickle.dumps(strong))  # noqa: S301
    assert again.audio.shards[0]._audio is None
    assert [int(again.waveform(i).astype(np.int64).sum()) for i in range(len(strong))] == mine
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_worker, args=(clips, queue)) for clips in (strong, again, strong)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for pid, _ in found} - {os.getpid()}) == 3
    assert all(sums == mine for _, sums in found)


def test_contradictory_arguments_are_refused():
    with pytest.raises(ValueError, match="either events or clip labels"):
        clip_set(["a"], Arrays([np.zeros(3, np.int16)]), CLASSES, samples=np.array([3]))
    with pytest.raises(ValueError, match="expected int16"):
        Arrays([np.zeros(3)])
    with pytest.raises(ValueError, match="at least one clip"):
        empty = labelled([], Arrays([]), CLASSES, events={})
        Loader(empty, recipe(), seed=0)
