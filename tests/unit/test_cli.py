"""The command line as a user has it: real files in, events out, one sentence for a mistake."""

import json
from pathlib import Path

import pytest
import torch

from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.models import build_model

RECORDINGS = sorted((Path(__file__).parents[2] / "miniature" / "recordings").glob("*.ogg"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model = build_model("tiny", n_classes=3).init_weights(torch.Generator().manual_seed(0))
    model.frame_head.bias.data.copy_(torch.tensor([3.0, 0.0, -9.0]))  # always, sometimes, never
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), model, classes=["a", "b", "c"], provenance={})


def test_predict_writes_events_in_every_format(checkpoint, tmp_path):
    arguments = ["predict", str(RECORDINGS[0]), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]
    assert main([*arguments, "--format", "tsv,json,audacity", "--plot"]) == 0
    name = RECORDINGS[0].name
    table = (tmp_path / f"{name}.events.tsv").read_text().splitlines()
    assert table[0] == "onset\toffset\tevent_label\tscore"
    events = json.loads((tmp_path / f"{name}.events.json").read_text())
    assert {e["event_label"] for e in events} >= {"a"} and "c" not in {e["event_label"] for e in events}
    assert len(events) == len(table) - 1 == len((tmp_path / f"{name}.labels.txt").read_text().splitlines())
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_cannot_be_read_does_not_stop_the_others(checkpoint, tmp_path, capsys):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF nothing")
    assert (
        main(["predict", str(broken), str(RECORDINGS[1]), "--checkpoint", str(checkpoint), "--out", str(tmp_path)]) == 1
    )
    said = capsys.readouterr().err
    assert "broken.wav" in said and "Traceback" not in said
    assert (tmp_path / f"{RECORDINGS[1].name}.events.tsv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpoint", "nowhere", "--threshold", "7"], "between 0 and 1"),
        (["--checkpoint", "nowhere", "--format", "xml"], "'xml'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, capsys):
    assert main(["predict", str(RECORDINGS[0]), *arguments]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_doctor_names_what_is_missing(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("audioset: {folders: [no/such/folder], download: {enabled: false}}")
    assert main(["doctor", "--configfile", str(config)]) == 1
    assert "no/such/folder does not exist" in capsys.readouterr().out


def test_doctor_looks_at_the_checkpoints_that_the_run_starts_from(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "M2D_ssl.pt").write_bytes(b"not what was pinned")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""data_dir: {tmp_path}
models: [ATST-F, BEATs, M2D]
step1:
  external:
    ATST-F: {{url: ""}}
    M2D: {{sha256: '{"0" * 64}'}}
step2:
  external:
    BEATs: {{url: "https://elsewhere.example/BEATs_ssl.pt"}}
"""
    )
    assert main(["doctor", "--configfile", str(config)]) == 1
    said = capsys.readouterr().out
    assert "step1.external.ATST-F: no address" in said
    assert "step2.external.BEATs: another address ends in BEATs_ssl.pt too" in said
    assert "step1.external.M2D" in said and "expected 0000" in said
    assert "step1.external.BEATs" not in said and "fPaSST" not in said
