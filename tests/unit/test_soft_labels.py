"""Students that learn from a ready-made file of soft labels, in the layout of the published one."""

import h5py
import numpy as np
import pytest
import torch
from small_audioset import train_job, write_audioset, write_step1

from framekd import checkpoints
from framekd.config import UserError
from framekd.files import sha256_of
from framekd.jobs import SoftLabelsJob
from framekd.pipeline.ensemble import fetch_soft_labels
from framekd.pipeline.train import strong_clips, train_strong


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The inputs of a training on a small AudioSet, from Step 1 weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("audioset")
    yield {**write_audioset(folder / "data", train=12, evaluation=2), "weights": [write_step1(folder)]}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clips(inputs):
    """The training clips."""
    return strong_clips(inputs)


def published(path, names, n_classes, value):
    """A file with the content of the published one: names of mp3 files and logits, no class list and no clip ids."""
    with h5py.File(path, "w") as file:
        file["filenames"] = np.array([name.encode() for name in names])
        file["strong_logits"] = np.full((len(names), n_classes, 250), value, np.float16)
    return str(path)


def mp3(clip):
    return f"Y{clip.rsplit('_', 1)[0]}.mp3"


def trained(inputs, file, out, **options):
    """Train a student on the soft labels of `file` and return its weights."""
    job = train_job(distillation_weight=0.9, epochs=1, **options)
    train_strong(job, inputs={**inputs, "soft_labels": [file]}, weights=[str(out / "model.safetensors")])
    return checkpoints.load_checkpoint(out)[0].state_dict()


def test_a_student_trains_without_teachers_and_missing_clips_train_on_labels(inputs, clips, tmp_path, capfd):
    names = [mp3(clip) for clip in clips.ids[:7]]
    names[3] = names[3].rstrip(".mp3")
    names.append("Yelsewhere1.mp3")
    weights = []
    for i, value in enumerate((-6.0, -6.0, 6.0)):
        file = published(tmp_path / f"{i}.h5", names, len(clips.classes), value)
        weights.append(trained(inputs, file, tmp_path / str(i), missing_clips="labels"))
        said = capfd.readouterr().out
        assert f"{file}: soft labels for 7 of 12 training clips; the other 5 are trained on labels alone" in said
    assert all(bool(value.isfinite().all()) for value in weights[0].values())
    assert checkpoints.read_spec(tmp_path / "0")["provenance"]["soft_labels"] == str(tmp_path / "0.h5")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # Soft labels of 0 and of 1 pull the head's biases apart.
    assert (weights[2]["frame_head.bias"] > weights[0]["frame_head.bias"]).all()


def test_an_ensemble_of_the_run_must_have_every_clip(inputs, clips, tmp_path):
    file = published(tmp_path / "e.h5", [mp3(clip) for clip in clips.ids[:7]], len(clips.classes), 0.0)
    with pytest.raises(UserError, match="has no clip"):
        trained(inputs, file, tmp_path / "out")


def test_a_file_of_other_clips_is_refused(inputs, clips, tmp_path):
    file = published(tmp_path / "e.h5", ["Yelsewhere1.mp3"], len(clips.classes), 0.0)
    with pytest.raises(UserError, match=r"e\.h5 has soft labels for none of the 12 training clips, such as 'vid_0"):
        trained(inputs, file, tmp_path / "out", missing_clips="labels")


def test_a_file_is_fetched_checked_and_its_sum_recorded(tmp_path):
    source = tmp_path / "source.h5"
    published(source, ["Yelsewhere1.mp3"], 2, 0.0)
    out, other = tmp_path / "soft_labels" / "source.h5", tmp_path / "other" / "source.h5"
    fetch_soft_labels(SoftLabelsJob(version=1, url=source.as_uri(), sha256=None), out=str(out))
    assert out.read_bytes() == source.read_bytes()
    assert (tmp_path / "soft_labels/source.h5.sha256").read_text().split()[0] == sha256_of(source)
    with pytest.raises(UserError, match="expected 0000"):
        fetch_soft_labels(SoftLabelsJob(version=1, url=source.as_uri(), sha256="0" * 64), out=str(other))
    assert not other.exists()


def test_a_web_page_in_place_of_the_file_is_refused(tmp_path):
    page = tmp_path / "page.h5"
    page.write_text("<html>")
    job = SoftLabelsJob(version=1, url=page.as_uri(), sha256=None)
    with pytest.raises(UserError, match="write the address of the file itself, not of a page"):
        fetch_soft_labels(job, out=str(tmp_path / "out" / "page.h5"))
