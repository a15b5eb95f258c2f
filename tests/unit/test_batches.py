"""Batches against a slow reference that makes them clip by clip; rows of several processes; files that change."""

import pickle
import shutil
import time

import h5py
import numpy as np
import pytest
import torch

from framekd.clip_soft_labels import ClipSoftLabels
from framekd.config import Augment, TrainRecipe, UserError
from framekd.data import Loader, MixedLoader, strong_set, weak_set
from framekd.data.loader import prefetched
from framekd.data.resident import choose
from framekd.labels import ClassList
from framekd.soft_labels import SoftLabels
from framekd.store import StoredClip, write_shard

FRAMES, CLASSES, CLIPS, STEPS = 25, 12, 20, 50
SAMPLES = FRAMES * 640
NAMES = [f"v{i:010d}_{1000 * i}" for i in range(CLIPS)]
LIST = ClassList(tuple(f"/m/{i}" for i in range(CLASSES)), tuple(f"class {i}" for i in range(CLASSES)))
TENSORS = ("waveform", "starts", "lengths", "frame_labels", "clip_labels", "soft_labels", "has_frame_labels",
           "soft_share")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two shards (PCM and FLAC) with clips under, of and over 1 s, their labels, and soft labels of some of them."""
    path, rng = tmp_path_factory.mktemp("batches"), np.random.default_rng(0)
    sizes = [SAMPLES] * CLIPS
    sizes[3], sizes[5], sizes[6] = 7_001, 20_000, 60_000
    stored = [
        StoredClip(name, 1000 * i, (rng.standard_normal(n) * 3000 + 50 * i).astype(np.int16))
        for i, (name, n) in enumerate(zip(NAMES, sizes))
    ]
    write_shard(path / "0.h5", stored[::2])
    write_shard(path / "1.h5", stored[1::2], encoding="flac")
    rows = [
        f"{name}\t{a:.3f}\t{a + length:.3f}\t/m/{c}\n"
        for name in NAMES
        for a, length, c in zip(rng.uniform(0, 0.95, 6), rng.exponential(0.3, 6) + 0.01, rng.integers(0, CLASSES, 6))
    ]
    (path / "strong.tsv").write_text("segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n" + "".join(rows))
    marks = [f'"/m/{i % CLASSES},/m/{(5 * i + 1) % CLASSES}"' for i in range(CLIPS)]
    lines = [f"{name[:11]}, {i}.000, {i + 2}.000, {marks[i]}\n" for i, name in enumerate(NAMES)]
    (path / "weak.csv").write_text("# comment\n" + "".join(lines))
    with h5py.File(path / "ensemble.h5", "w") as file:  # without one of the classes and three of the clips
        clips, classes = rng.permutation(CLIPS)[:-3], rng.permutation(CLASSES)[:-1]
        file["filenames"] = np.array([f"Y{NAMES[i][:11]}.mp3".encode() for i in clips])
        file["strong_logits"] = rng.normal(-3, 3, (len(clips), len(classes), FRAMES)).astype(np.float16)
        file.attrs["classes"] = [LIST.names[c] for c in classes]
        file.attrs["class_ids"] = [LIST.mids[c] for c in classes]
    np.save(path / "weak.npy", rng.normal(-2, 2, (CLIPS - 4, CLASSES)).astype(np.float32))
    with (path / "weak.pkl").open("wb") as file:
        pickle.dump({name[:11]: i for i, name in enumerate(NAMES[:-4])}, file)
    return path


def strong(folder):
    return strong_set([folder / "0.h5", folder / "1.h5"], folder / "strong.tsv", LIST)


def weak(folder):
    return weak_set([folder / "0.h5", folder / "1.h5"], folder / "weak.csv", LIST)


def ensemble(folder):
    return SoftLabels(folder / "ensemble.h5", LIST, missing_clips="labels")


def loader(folder, stage, **more):
    """The loader of a stage, with its kind of labels, sampling and mixing."""
    values, clips, soft = {}, strong(folder), None
    augment = {"teacher": {"wavmix": 1.0}, "gain": {"wavmix": 0.5, "gain_db": 6.0}}.get(stage, {"wavmix": 0.5})
    if stage == "step2":
        clips = weak(folder)
        soft = ClipSoftLabels(folder / "weak.npy", clips.ids, LIST, index=folder / "weak.pkl")
        values = {"sampler": "balanced", "replacement": False, "sampler_offset": 100.0}
    elif stage == "student":
        soft = ensemble(folder)
    elif stage == "teacher":
        values = {"sampler": "balanced"}
    recipe = TrainRecipe(epochs=10, epoch_clips=38, batch_size=8, augment=Augment(**augment), **values)
    return Loader(clips, recipe, seed=3, n_frames=FRAMES, soft=soft, **more)


def reference(one, step):
    """A batch made clip by clip: only the means of waveforms, whose last bit depends on it, are of all rows at once."""
    draw, clips = one.draw(step), one.clips

    def waves(which, starts, gain):
        out = torch.zeros(len(which), SAMPLES)
        for row, (clip, start) in enumerate(zip(which, starts)):
            samples = clips.waveform(int(clip))[start * 640 : start * 640 + SAMPLES]
            out[row, : len(samples)] = torch.from_numpy(samples.astype(np.float32) / 32768)
            out[row] *= 1.0 if gain is None else gain[row]
        return out

    def labels(clip, start):
        frames, whole, length = torch.zeros(CLASSES, FRAMES), torch.zeros(CLASSES), clips.samples[clip] - start * 640
        for e in range(clips.start[clip], clips.start[clip + 1]):
            begin, end = max(clips.begin[e] - start, 0), min(clips.end[e] - start, FRAMES)
            if not clips.has_frames[clip] or begin < end:
                whole[clips.label[e]] = 1.0
            if clips.has_frames[clip] and begin < end:
                frames[clips.label[e], begin:end] = 1.0
        return frames, whole, int(np.clip(length, 0, SAMPLES))

    def soft(which):
        rows = one.soft_source.rows([clips.ids[int(i)] for i in which]).clone()
        known = torch.tensor([not bool(row.reshape(CLASSES, -1)[:, 0].isnan().all()) for row in rows])
        rows[~known] = 0.0
        return rows, known.float()

    wave, made = waves(draw.clips, draw.starts, draw.gain), list(map(labels, draw.clips, draw.starts))
    out = {"ids": [clips.ids[i] for i in draw.clips], "soft": None, "known": None}
    if one.soft_source is not None:
        out["soft"], out["known"] = soft(draw.clips)
    if (mix := draw.mix) is not None:
        theirs, also = waves(mix.partners, mix.starts, mix.gain), list(map(labels, mix.partners, mix.starts))
        share = torch.from_numpy(mix.share)
        means = wave[mix.rows].mean(1), theirs.mean(1)
        other = (None, None) if one.soft_source is None else soft(mix.partners)
        for k, row in enumerate(mix.rows):
            wave[row] = (wave[row] - means[0][k]) * share[k] + (theirs[k] - means[1][k]) * (1 - share[k])
            mine, his = made[row], also[k]
            part, rest = share[k], 1 - share[k]
            made[row] = (mine[0] * part + his[0] * rest, mine[1] * part + his[1] * rest, max(mine[2], his[2]))
            for name, value in zip(("soft", "known"), other):
                if value is not None:
                    out[name][row] = out[name][row] * part + value[k] * rest
    frames, whole, lengths = zip(*made)
    timed = bool(clips.has_frames.any())
    return out["ids"], {
        "waveform": wave, "starts": torch.from_numpy(draw.starts), "lengths": torch.tensor(lengths),
        "frame_labels": torch.stack(frames) if timed else None, "clip_labels": torch.stack(whole),
        "soft_labels": out["soft"], "has_frame_labels": torch.from_numpy(clips.has_frames[draw.clips]),
        "soft_share": out["known"],
    }  # fmt: skip


def equal(a, b):
    return a is b is None or (a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, -1), torch.nan_to_num(b, -1)))


@pytest.mark.parametrize("audio_on", ["host", "device"])
@pytest.mark.parametrize("stage", ["step2", "teacher", "student", "gain"])
def test_batches_equal_the_reference_bit_for_bit(folder, stage, audio_on):
    one = loader(folder, stage, audio_on=audio_on)
    for step, batch in enumerate(one.batches(0, STEPS if audio_on == "host" else 5)):
        ids, expected = reference(one, step)
        assert batch.ids == ids
        for name in TENSORS:
            assert equal(getattr(batch, name), expected[name]), (step, name)


@pytest.mark.parametrize("stage", ["step2", "teacher", "student", "both"])
def test_each_process_reads_its_own_rows_and_their_partners_only(folder, stage, monkeypatch):
    """The rows of three processes are those of one, and a clip is read by one process only."""
    parts = ["teacher", "step2"] if stage == "both" else [stage]
    loaders = [loader(folder, part) for part in parts]
    if stage == "both":
        loaders = [loader(folder, "teacher"), Loader(weak(folder), loaders[0].recipe, seed=7, n_frames=FRAMES)]
    one = MixedLoader(loaders) if stage == "both" else loaders[0]
    read = []
    for part in loaders:
        audio = part.clips.audio
        monkeypatch.setattr(audio, "read", lambda i, *rest, f=audio.read: (read.extend(i.tolist()), f(i, *rest))[1])
    for step in (0, 4):
        read.clear()
        whole = one.batch(step)
        of_all, size = sorted(read), len(whole)
        read.clear()
        made = []
        for rank in range(3):
            each = -(-size // 3)
            before = len(read)
            made.append(one.batch(step, rows=lambda n, r=rank, each=each: slice(r * each, min(n, (r + 1) * each))))
            assert made[-1].ids == whole.ids and len(read) - before < len(of_all)
        assert sorted(read) == of_all
        for name in TENSORS:
            parts = [getattr(batch, name) for batch in made]
            joined = None if parts[0] is None else torch.cat(parts)
            assert joined is None is getattr(whole, name) or torch.allclose(
                joined.float(), getattr(whole, name).float(), atol=1e-6, equal_nan=True
            ), name


def test_auto_takes_what_fits_into_a_quarter_of_the_free_memory(folder, capsys):
    clips, soft, cpu = strong(folder), ensemble(folder), torch.device("cpu")
    audio, labels = 2 * CLIPS * 60_000, 2 * CLIPS * (CLASSES - 1) * FRAMES
    for free, kept in ((4 * (audio + labels), (True, True)), (4 * audio, (True, False)), (audio, (False, False))):
        found = choose("auto", clips, SAMPLES, soft, cpu, free=free)
        assert (found.audio is not None, found.soft is not None) == kept
    assert "audio_on: auto: nothing of the training set" in capsys.readouterr().err
    with pytest.raises(UserError, match="write audio_on: auto"):
        choose("device", clips, SAMPLES, soft, cpu, free=1000)
    assert choose("auto", clips, SAMPLES, soft, cpu).audio is None


@pytest.mark.parametrize("file", ["0.h5", "1.h5", "ensemble.h5", "weak.npy"])
@pytest.mark.parametrize("how", ["shrinks", "changes", "goes"])
def test_a_file_that_changes_under_a_job_is_refused(folder, tmp_path, file, how):
    """One sentence, and not a killed process or a batch of other bytes; a file replaced by name was opened before."""
    copy = tmp_path / "data"
    shutil.copytree(folder, copy)
    one = loader(copy, "step2" if file == "weak.npy" else "student")
    if how != "goes":
        one.batch(0)
    path = copy / file
    if how == "shrinks":
        with path.open("r+b") as handle:
            handle.truncate(path.stat().st_size // 2)
    elif how == "changes":
        with path.open("r+b") as handle:
            handle.seek(-100, 2)
            handle.write(b"x" * 100)
    else:
        path.unlink()
    with pytest.raises(UserError, match=rf"{file} (has changed|cannot be read any more)[^\n]*start the run again"):
        for _ in one.batches(1, STEPS):
            pass


def test_several_threads_give_the_items_in_order():
    def make(step):
        time.sleep(0.002 * (step % 3))
        if step == 17:
            raise ValueError("seventeen")
        return step

    assert list(prefetched(make, 2, 16, 3, threads=3)) == list(range(2, 16))
    assert list(prefetched(make, 4, 5, 8, threads=2)) == [4]
    assert list(prefetched(make, 4, 4, 3)) == []
    found = []
    with pytest.raises(ValueError, match="seventeen"):
        found.extend(prefetched(make, 10, 30, 3, threads=3))
