"""The command line as a user has it: real files in, events out, one sentence for a mistake."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
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


class Steps(torch.nn.Module):
    """A stand-in for a model: one class whose probability rises and falls at known times, whatever the audio."""

    name = "steps"
    # (begin, end, probability) in seconds: a gap of 0.2 s in a long event, a short event, and a quiet one.
    PARTS = ((1.0, 2.0, 0.9), (2.2, 3.2, 0.9), (5.0, 5.12, 0.8), (7.0, 9.0, 0.4))

    def frontend(self, waveform):
        return waveform

    def forward(self, mel, outputs="logits"):
        probability = torch.full((len(mel), 1, 250), 0.01)
        for begin, end, value in self.PARTS:
            probability[:, :, round(25 * begin) : round(25 * end)] = value
        return probability.logit(), probability.mean(-1).logit()


@pytest.mark.parametrize(
    ("options", "spans"),
    [
        (["--median", "0.04"], [(1.0, 2.0), (2.2, 3.2), (5.0, 5.12)]),
        (["--median", "0.04", "--threshold", "0.3"], [(1.0, 2.0), (2.2, 3.2), (5.0, 5.12), (7.0, 9.0)]),
        (["--median", "0.04", "--threshold", "0.85"], [(1.0, 2.0), (2.2, 3.2)]),
        # The default, 0.48 s, fills the gap of 0.2 s and removes the event of 0.12 s. Its 12 frames t - 6 … t + 5 have
        # the upper median: it is high if 6 of them are, so that an event ends one frame later.
        ([], [(1.0, 3.24)]),
        (["--threshold", "0.3"], [(1.0, 3.24), (7.0, 9.04)]),
    ],
)
def test_threshold_and_median_decide_which_events_are_found(options, spans, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(160_000), 16_000)
    monkeypatch.setattr("framekd.published.open_detector", lambda name, **_: (Steps(), {"classes": ["bell"]}))
    assert main(["predict", str(tmp_path / "a.wav"), "--checkpoint", "any", *options]) == 0
    rows = [line.split("\t") for line in (tmp_path / "a.wav.events.tsv").read_text().splitlines()[1:]]
    assert [(float(onset), float(offset)) for onset, offset, *_ in rows] == spans
    assert {label for _, _, label, _ in rows} == {"bell"}


def test_doctor_passes_a_machine_and_data_that_are_complete(tmp_path, capsys, monkeypatch):
    from framekd.config import LABEL_FILES, PAPER_TASKS
    from framekd.layouts import lists

    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").mkdir()
    for file in [
        "data/store/strong/0000.h5",
        *(f"labels/{n}" for n in LABEL_FILES.values()),
        *(path for task in PAPER_TASKS for path in lists(task, task.lower())),
    ]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("something")
    config = tmp_path / "c.yaml"
    config.write_text(
        """models: [M2D]
seeds: [1]
settings:
  {li_et_al: null, without_rnn: null, without_kd: null, without_step2: null,
   proposed: {teacher: null, student: {recipe: {distillation_weight: 0.0}}}}
audioset: {folders: [audio], labels_dir: labels, weak: false, download: {enabled: false, shards: {strong: 1, eval: 1}}}
downstream: {DESED: {data: desed}, DC16-T2: {data: dc16-t2}, MAESTRO: {data: maestro}}
"""
    )
    assert main(["doctor", "--configfile", str(config)]) == 0
    said = capsys.readouterr().out
    assert said.endswith("framekd doctor: nothing is in the way\n") and "\n- " not in said
    # what the machine has, beside what a run needs: shards that are there are not counted
    assert "GPUs on this machine: " in said and "the configuration asks for 1 per training" in said
    assert re.search(r"disk of data: [\d,]+ GB free, about 6 GB still needed", said)


def test_doctor_compares_the_free_space_with_what_is_needed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=99e9))
    (tmp_path / "c.yaml").write_text("seeds: [1]\ndata_dir: big")
    assert main(["doctor", "--configfile", "c.yaml", "--", "results/table1.csv"]) == 1
    said = capsys.readouterr().out
    assert "c.yaml, line 2: data_dir: the disk of big and results has 99 GB free of about" in said, said


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
