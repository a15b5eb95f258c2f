"""Students that learn from a ready-made file of soft labels, in the layout of the published one."""

import h5py
import numpy as np
import pytest
import torch
from small_audioset import block, write_audioset, write_step1

from framekd import checkpoints
from framekd.config import UserError
from framekd.pipeline.strong import Given, fetch_soft_labels, train, training_clips


@pytest.fixture(scope="module")
def audioset(tmp_path_factory):
    """(data folder, Step 1 weights, training clips) of a small AudioSet."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audioset")
    write_audioset(folder / "data", train=12, evaluation=2)
    yield str(folder / "data"), write_step1(folder), training_clips(folder / "data")
    torch.set_num_threads(threads)


def published(path, names, n_classes, value):
    """Only what the published file has: names as of the mp3 files, and logits; no class list, no clip ids."""
    with h5py.File(path, "w") as file:
        file["filenames"] = np.array([name.encode() for name in names])
        file["strong_logits"] = np.full((len(names), n_classes, 250), value, np.float16)
    return str(path)


def mp3(clip):
    return f"Y{clip.rsplit('_', 1)[0]}.mp3"


def trained(audioset, file, out, **extra):
    """Weights of a student of `file`."""
    data, start, _ = audioset
    given = Given({**block(distillation_weight=0.9, epochs=1), **extra}, start, data, ensemble=file)
    train(given, {1: str(out / "model.safetensors")})
    return checkpoints.load_checkpoint(out)[0].state_dict()


def test_a_student_trains_without_teachers_and_clips_that_the_file_lacks_train_on_labels(audioset, tmp_path, capsys):
    clips = audioset[2]
    names = [mp3(clip) for clip in clips.ids[:7]]
    names[3] = names[3].rstrip(".mp3")
    names.append("Yelsewhere1.mp3")
    weights = []
    for i, value in enumerate((-6.0, -6.0, 6.0)):
        file = published(tmp_path / f"{i}.h5", names, len(clips.classes), value)
        weights.append(trained(audioset, file, tmp_path / str(i), missing_clips="labels"))
        said = capsys.readouterr().out
        assert f"{file}: soft labels for 7 of 12 training clips; the other 5 train on their labels alone" in said
    assert all(bool(value.isfinite().all()) for value in weights[0].values())
    assert checkpoints.read_spec(tmp_path / "0")["provenance"]["soft_labels"] == str(tmp_path / "0.h5")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # soft labels of nothing and of everything pull the head's biases apart
    assert (weights[2]["frame_head.bias"] > weights[0]["frame_head.bias"]).all()


def test_an_ensemble_of_the_run_must_have_every_clip(audioset, tmp_path):
    clips = audioset[2]
    file = published(tmp_path / "e.h5", [mp3(clip) for clip in clips.ids[:7]], len(clips.classes), 0.0)
    with pytest.raises(UserError, match="has no clip"):
        trained(audioset, file, tmp_path / "out")


def test_a_file_of_other_clips_is_refused(audioset, tmp_path):
    file = published(tmp_path / "e.h5", ["Yelsewhere1.mp3"], len(audioset[2].classes), 0.0)
    with pytest.raises(UserError, match=r"e\.h5 has soft labels for none of the 12 training clips, such as 'vid_0"):
        trained(audioset, file, tmp_path / "out", missing_clips="labels")


def test_a_file_is_fetched_checked_and_its_sum_kept(tmp_path):
    source = published(tmp_path / "source.h5", ["Yelsewhere1.mp3"], 2, 0.0)
    about = {"url": (tmp_path / "source.h5").as_uri(), "sha256": None}
    out = tmp_path / "soft_labels" / "source.h5"
    fetch_soft_labels(about, out=str(out))
    assert checkpoints.sha256_of(out) == checkpoints.sha256_of(source)
    assert (tmp_path / "soft_labels/source.h5.sha256").read_text().split()[0] == checkpoints.sha256_of(source)
    with pytest.raises(UserError, match="expected 0000"):
        fetch_soft_labels({**about, "sha256": "0" * 64}, out=str(tmp_path / "other" / "source.h5"))
    assert not (tmp_path / "other" / "source.h5").exists()


def test_the_page_of_a_file_is_not_the_file(tmp_path):
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(UserError, match="is no HDF5 file; write the address of the file itself, not of a page"):
        fetch_soft_labels({"url": (tmp_path / "page.h5").as_uri(), "sha256": None}, out=str(tmp_path / "o" / "page.h5"))
