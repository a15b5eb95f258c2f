"""Exported models: the same logits in onnxruntime and TorchScript, without this package; cards; mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch

from framekd.audio import decode
from framekd.card import citation, scores_of
from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.config import UserError
from framekd.export import TOLERANCE, Exported, export
from framekd.models import ENCODERS, build_model
from framekd.models.plain_mel import PlainFrontEnd

RECORDINGS = sorted((Path(__file__).parents[2] / "miniature" / "recordings").glob("*.ogg"))
SIZES = {"width": 32, "depth": 1, "heads": 2, "mlp": 32, "rnn_hidden": 8}
EXTRA = {"fPaSST": {"stem": [4, 8, 16]}, "BEATs": {"patch_dim": 16, "pos_groups": 4}, "tiny": {}}


def build(name, sequence_model=None, **other):
    model = build_model(name, n_classes=3, sequence_model=sequence_model, sizes=SIZES | EXTRA.get(name, {}), **other)
    return model.init_weights(torch.Generator().manual_seed(1)).eval()


def clips():
    """Clips of 10 s: two recordings with digital silence after them, noise, silence."""
    out = torch.zeros(4, 160_000)
    for row, path in zip(out, RECORDINGS[::80]):
        samples = torch.from_numpy(decode(path)).float()[:160_000] / 32768
        row[: len(samples)] = samples
    out[2] = 0.1 * torch.randn(160_000, generator=torch.Generator().manual_seed(2))
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A student of a run of results, with its row of scores."""
    results = tmp_path_factory.mktemp("results")
    scores = results / "evaluation" / "students" / "proposed" / "tiny" / "seed1.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text("setting,model,psds1,clips\nproposed,tiny,0.4321,97\n")
    about = {"start": "step2", "recipe": {"epochs": 120, "augment": {"mixup": 0.3, "wavmix": 0.0}}}
    folder = results / "students" / "proposed" / "tiny" / "seed1"
    return save_checkpoint(folder, build("tiny"), classes=["Bell", "Dog, bark", "x|y"], provenance=about)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_front_end_for_export_gives_the_same_spectrogram(name):
    model, waveform = build(name), clips()
    with torch.inference_mode():
        wanted, found = model.frontend(waveform), PlainFrontEnd(model.encoder.front_end)(waveform)
    assert found.shape == wanted.shape
    error = (found - wanted).abs()
    assert error.max() < 1e-3 and error.mean() < 2e-6  # a silent band's logarithm amplifies the rounding
    assert torch.equal(found[3], wanted[3]), "digital silence is exact"


@pytest.mark.parametrize("sequence_model", [None, "bigru"])
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "tiny"])
def test_onnxruntime_gives_the_same_logits_for_any_batch(name, sequence_model, tmp_path):
    model, path = build(name, sequence_model), tmp_path / "model.onnx"
    assert export(model, path, "onnx", {"model": name, "classes": ["a", "b", "c"]}) < TOLERANCE
    session = onnxruntime.InferenceSession(path)
    assert [value.shape[1:] for value in session.get_outputs()] == [[3, 250], [3]]
    waveform = clips()
    for rows in (slice(0, 1), slice(0, 4)):  # the example at export had two clips
        with torch.inference_mode():
            wanted = model(model.frontend(waveform[rows]))
        found = session.run(None, {"waveform": waveform[rows].numpy()})
        for ours, theirs in zip(wanted, found, strict=True):
            assert np.abs(ours.numpy() - theirs).max() < TOLERANCE


def test_torchscript_gives_the_same_logits_where_framekd_is_not_installed(tmp_path):
    model, path = build("fPaSST", "bigru"), tmp_path / "model.pt"
    export(model, path, "torch", {"model": "fPaSST", "classes": ["Bell", "Hund", "Käuzchen"]})
    with torch.inference_mode():
        wanted = model(model.frontend(clips()[:3]))
    np.save(tmp_path / "clips.npy", clips()[:3].numpy())
    code = (
        "import sys, json, numpy, torch; sys.modules['framekd'] = None; about = {'about.json': ''}\n"
        "model = torch.jit.load('model.pt', _extra_files=about)\n"
        "numpy.savez('out.npz', *model(torch.from_numpy(numpy.load('clips.npy'))))\n"
        "assert json.loads(about['about.json'])['classes'][2] == 'Käuzchen'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as found:
        for ours, theirs in zip(wanted, found.values(), strict=True):
            assert np.abs(ours.numpy() - theirs).max() < TOLERANCE


@pytest.mark.parametrize(("form", "file"), [("onnx", "tiny.onnx"), ("torch", "tiny.pt")])
def test_the_example_of_the_card_works_as_it_stands(form, file, checkpoint, tmp_path):
    assert main(["export", "--model", str(checkpoint), "--format", form, "--out", str(tmp_path / file)]) == 0
    soundfile.write(tmp_path / "clip.wav", decode(RECORDINGS[0])[:48_000], 16_000)
    card = (tmp_path / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert len([line for line in example.splitlines() if line]) <= 7
    code = example + "\nassert tuple(probabilities.shape) == (3, 250) and 0 <= probabilities.min()\n"
    code += "assert (classes if 'classes' in globals() else about['classes']) == ['Bell', 'Dog, bark', 'x|y']\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_card_says_what_the_checkpoint_and_its_results_know(checkpoint, tmp_path):
    arguments = ["export", "--model", str(checkpoint), "--out", str(tmp_path / "a" / "tiny.onnx"), "--licence", "MIT"]
    assert main(arguments) == 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "\n## Licence\n\nMIT\n" in card
    assert "| recipe.epochs | 120 |" in card and "| recipe.augment.mixup | 0.3 |" in card and "wavmix" not in card
    assert "| PSDS1 | 0.4321 |" in card and "Bell · Dog, bark · x|y" in card
    assert citation() in card and "Schmid, Florian and Morocutti, Tobias" in card
    properties = onnx.load(tmp_path / "a" / "tiny.onnx").metadata_props
    about = {entry.key: entry.value for entry in properties}
    assert json.loads(about["classes"]) == ["Bell", "Dog, bark", "x|y"]
    assert (about["sample_rate"], about["frame_seconds"], about["licence"]) == ("16000", "0.04", "MIT")


def test_a_readme_of_ones_own_is_never_overwritten(checkpoint, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for _ in range(2):
        assert main(["export", "--model", str(checkpoint), "--format", "torch", "--out", str(tmp_path / "b.pt")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "b.pt", "b.pt.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "No scores" not in (tmp_path / "b.pt.md").read_text()


def test_a_folder_without_results_has_no_scores(tmp_path):
    assert scores_of(tmp_path / "results" / "students" / "proposed") == {}


@pytest.mark.parametrize(
    ("model", "switches", "words"),
    [
        ("fPaSST", {"precision": "fp16"}, "precision: fp16"),
        ("ATST-F", {"maximum": "batch"}, "maximum: batch"),
    ],
)
def test_a_front_end_that_cannot_be_exported_is_one_sentence(model, switches, words, tmp_path, capsys):
    folder = save_checkpoint(tmp_path / "m", build(model, front_end=switches), classes=list("abc"), provenance={})
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "out.onnx")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out.onnx").exists()


def test_statistics_of_a_file_are_exported():
    model = build("M2D", front_end={"norm_stats": [-5.0, 3.0]})
    with torch.inference_mode():
        wanted, found = model.frontend(clips()), PlainFrontEnd(model.encoder.front_end)(clips())
    assert (found - wanted).abs().max() < 1e-3 and wanted.mean() != build("M2D").frontend(clips()).mean()


def test_a_folder_as_output_is_one_sentence(checkpoint, tmp_path, capsys):
    assert main(["export", "--model", str(checkpoint), "--out", str(tmp_path)]) == 1
    assert "is a folder; name the file" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", "--model", str(checkpoint), "--out", str(tmp_path / "x.onnx")]) == 1
    said = capsys.readouterr().err
    assert package in said and "pip install 'framekd[export]'" in said and list(tmp_path.iterdir()) == []


def test_a_file_whose_logits_differ_is_not_written(tmp_path, monkeypatch):
    model = build("tiny")
    monkeypatch.setattr(Exported, "forward", lambda self, waveform: self.model(self.front_end(waveform) + 0.1))
    with pytest.raises(UserError, match="logits differ from the model's"):
        export(model, tmp_path / "x.pt", "torch", {"model": "tiny"})
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_without_a_trained_head_is_not_exported(tmp_path, capsys):
    model = build_model("tiny", n_classes=1, sizes=SIZES)
    folder = save_checkpoint(tmp_path / "m", model, classes=["none"], provenance={})
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "out.onnx")]) == 1
    said = capsys.readouterr().err
    assert "only its encoder is trained" in said and said.count("\n") == 1 and not (tmp_path / "out.onnx").exists()
