"""bfloat16 as an option of predict: only where the processor has it, and with little effect on the scores."""

import numpy as np
import pytest
import soundfile
import torch

from framekd import checkpoints, inference
from framekd.cli import main
from framekd.config import UserError
from framekd.models import build_model
from framekd.predict import predict_waveform


@pytest.fixture
def model():
    """A tiny transformer with random weights."""
    sizes = {"width": 48, "depth": 2, "heads": 2}
    return build_model("BEATs", n_classes=5, sizes=sizes).init_weights(torch.Generator().manual_seed(0)).eval()


def scores(model, precision):
    wave = torch.from_numpy(np.random.default_rng(0).standard_normal(15 * 16_000).astype(np.float32) * 0.1)
    found = []
    predict_waveform(model, wave, [f"class {k}" for k in range(5)], precision=precision, on_scores=found.append)
    return np.concatenate(found)


def test_bf16_changes_scores_by_little_but_does_change_them(model):
    whole, half = scores(model, "fp32"), scores(model, inference.CPU_BF16)
    assert half.dtype == np.float32 and 0 < np.abs(whole - half).max() < 0.02
    # The name that recipes use acts on a GPU only: no other result on a CPU changes.
    assert np.array_equal(whole, scores(model, "bf16"))


@pytest.mark.parametrize("there", [True, False])
def test_the_command_asks_the_processor(model, there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "cpu_has_bf16", lambda: there)
    checkpoints.save_checkpoint(tmp_path / "m", model, classes=list("abcde"), provenance={})
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    given = [
        "predict",
        str(tmp_path / "a.wav"),
        "--model",
        str(tmp_path / "m"),
        "--device",
        "cpu",
        "--precision",
        "bf16",
    ]
    assert main(given) == (0 if there else 1)
    said = capsys.readouterr().err
    assert there or "this processor does not compute in bfloat16; leave the option out" in said
    assert len([*tmp_path.glob("a*.events.tsv")]) == there


def test_other_names_are_refused():
    assert inference.chosen_precision("fp32", torch.device("cpu")) == "fp32"
    with pytest.raises(UserError, match="expected fp32 or bf16"):
        inference.chosen_precision("int8", torch.device("cpu"))
