"""Frame embeddings: windows as in predict, bounded memory, files; and the rules of HEAR."""

import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
import torch

from framekd import hear
from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.config import UserError
from framekd.models import build_model
from framekd.train import torch_generator
from framekd.windows import embedding_stream, windowed

MODELS = ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT")
SMALL = {"width": 24, "depth": 1, "heads": 2, "mlp_ratio": 2}
SIZES = {"BEATs": {"patch_dim": 16, "pos_kernel": 8, "pos_groups": 2}, "fPaSST": {"stem": [2, 4, 8]}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = build_model("tiny", n_classes=3).init_weights(torch_generator(2))
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), model, classes=["a", "b", "c"], provenance={})


@pytest.mark.parametrize("seconds", [0.01, 4.0, 10.0, 10.01, 15.0, 15.04, 61.3])
def test_windows_are_those_of_predict(seconds):
    """The frame head is linear and a window's weights sum to 1, so that merged features give merged logits."""
    model = build_model("tiny", n_classes=3).init_weights(torch_generator(2)).eval()
    wave = torch.randn(round(16_000 * seconds), generator=torch_generator(3)) * 0.1
    pieces = np.array_split(wave.numpy(), 7) if len(wave) > 700 else [wave.numpy()]
    found = torch.cat(list(embedding_stream(model, pieces, batch_size=3)))
    with torch.no_grad():
        logits = model.frame_head(found).T
    assert logits.shape == windowed(model, wave).shape
    assert torch.allclose(logits, windowed(model, wave), atol=1e-5)


def test_files_and_folders_become_one_file_or_a_tree(checkpoint, tmp_path, capsys):
    draw = np.random.default_rng(0)
    for name, seconds in {"a.wav": 12.0, "b/a.wav": 3.0}.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / name, draw.uniform(-0.3, 0.3, int(seconds * 44_100)), 44_100)
    (tmp_path / "in" / "broken.wav").write_bytes(b"RIFF nothing")
    words = ["embed", str(tmp_path / "in"), "--model", str(checkpoint), "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path / "all.h5")]) == 1
    assert capsys.readouterr().err.count("broken.wav") == 1
    with h5py.File(tmp_path / "all.h5") as file:
        assert set(file) == {"a.wav", "b"} and file.attrs["model"] == "tiny"
        one, other = file["a.wav/embeddings"][:], file["b/a.wav/embeddings"][:]
        assert one.shape == (300, 64) and other.shape == (75, 64) and file["a.wav/times"][25] == 1.0
    assert main([*words, str(tmp_path / "tree"), "--format", "npy"]) == 1
    found = np.load(tmp_path / "tree" / "b" / "a.wav.npy")
    assert found.dtype == np.float32 and np.array_equal(found, other)
    assert np.array_equal(np.load(tmp_path / "tree" / "a.wav.times.npy"), np.arange(300) / 25)
    assert sorted(p.name for p in (tmp_path / "tree").iterdir()) == ["a.wav.npy", "a.wav.times.npy", "b"]
    assert np.array_equal(np.load(tmp_path / "tree" / "a.wav.npy", mmap_mode="r"), one)


def test_patterns_and_files_of_one_name_are_taken_as_by_predict(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.wav", "b/one.wav", "b/two.flac"):
        Path(name).parent.mkdir(exist_ok=True)
        soundfile.write(name, np.zeros(16_000), 16_000)
    words = ["--model", str(checkpoint), "--device", "cpu", "--out"]
    assert main(["embed", "a/one.wav", "b/*", "gone.wav", *words, "x.h5"]) == 1
    assert capsys.readouterr().err.startswith("framekd: gone.wav: no such file\n")
    with h5py.File("x.h5") as file:
        assert sorted(f"{folder}/{name}" for folder in file for name in file[folder]) == [
            "a/one.wav", "b/one.wav", "b/two.flac"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["nowhere", "--out", "x.h5"], "nowhere: no such file"),
        (["empty", "--out", "x.h5"], "empty: there is no audio in this folder"),
        (["text.wav", "--out", "x.h5"], "none of 1 files could be read; x.h5 is not written"),
        (["text.wav", "--out", "x.h5", "--format", "npy"], "name a folder"),
        (["text.wav", "--out", "text.wav"], "is a file"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(checkpoint, tmp_path, monkeypatch, capsys, given, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("text.wav", "other/text.wav"):
        (tmp_path / name).write_text("no audio")
    assert main(["embed", *given, "--model", str(checkpoint)]) == 1
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".x*"))


def test_memory_does_not_grow_with_the_length(tmp_path):
    """15 minutes need less than 30 MB more than half a minute: their samples alone are 58 MB. So with events."""
    program = (
        "import resource, sys, torch\n"
        "from framekd.embeddings import embed\n"
        "from framekd.models import build_model\n"
        "from framekd.predict import predict_file\n"
        "model = build_model('tiny', n_classes=1, sizes=dict(width=8, heads=1, depth=1, mlp=8))\n"
        "model.frontend = lambda wave: wave\n"
        "model.features = lambda wave: wave.view(len(wave), 250, 640)[..., :8]\n"
        "model.forward = lambda wave, **_: (wave.view(len(wave), 250, 640)[..., :1].mT, wave[:, :1])\n"
        "for path in sys.argv[1:]:\n"
        "    print(sum(map(len, embed(model, path))), round(predict_file(model, path, ['a']).seconds * 25))\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    files = [tmp_path / f"{minutes}.wav" for minutes in (0.5, 15)]
    for path in files:
        soundfile.write(path, np.zeros(int(16_000 * 60 * float(path.stem)), np.int16), 16_000)
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    *short, before, long, again, after = map(int, done.stdout.split())
    assert short == [750, 750] and (long, again) == (22_500, 22_500) and after - before < 30


# ----------------------------------------------------------------------------------------------------------- HEAR


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        model = build_model(name, n_classes=1, sizes=SMALL | SIZES.get(name, {})).init_weights(torch_generator(1))
        save_checkpoint(root / name, model, classes=["none"], provenance={})
    return root


@pytest.mark.parametrize("name", MODELS)
def test_the_rules_of_hear(models, name):
    model = hear.load_model(str(models / name))
    assert isinstance(model, torch.nn.Module) and model.sample_rate == 16_000
    assert isinstance(model.scene_embedding_size, int) and isinstance(model.timestamp_embedding_size, int)
    for seconds in (1.07, 1.98, 4.0):
        audio = torch.rand(2, int(seconds * 16_000)) * 2 - 1
        frames, times = hear.get_timestamp_embeddings(audio, model)
        assert frames.dtype == torch.float32 and frames.shape == (2, times.shape[1], model.timestamp_embedding_size)
        assert times.shape[0] == 2 and torch.equal(times[0], times[1])
        assert torch.allclose(times[0].diff(), torch.tensor(40.0), atol=1e-3) and times[0, 0] == 20
        assert 1000 * seconds - 60 < times[0, -1] <= 1000 * seconds
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size)
    assert torch.allclose(scenes, frames.mean(1), atol=1e-6)
    with pytest.raises(UserError, match="shape"):
        hear.get_scene_embeddings(audio[0], model)


def test_hearvalidator_passes(models, monkeypatch):
    """The package itself, where it is installed: it imports TensorFlow, but uses it on TensorFlow's models only."""
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(Module=type("Module", (), {})))
    validate = pytest.importorskip("hearvalidator.validate")
    with pytest.warns(UserWarning, match="rounding errors accumulating"):
        validate.ValidateModel("framekd.hear", str(models / "BEATs"), device="cpu")()
