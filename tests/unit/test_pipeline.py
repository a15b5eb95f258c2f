"""Parts of the stages that the small run cannot see from outside."""

import numpy as np
import pytest
import torch

from framekd import checkpoints
from framekd.config import Recipe, UserError
from framekd.data import Arrays, labelled
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.pipeline import job
from framekd.pipeline.evaluate import score
from framekd.pipeline.pretrain import start_from, step1
from framekd.pipeline.strong import split

CLASSES = ClassList.of(["a", "b", "c"])


@pytest.fixture
def clips():
    """Ten clips of 10 s: `a` sounds for 4 s in each, `b` for 1 s in half of them, `c` never."""
    rng = np.random.default_rng(0)
    audio = Arrays([rng.integers(-1000, 1000, 160_000).astype(np.int16) for _ in range(10)])
    events = {f"clip{i}": [(0.0, 4.0, "a")] + ([(5.0, 6.0, "b")] if i % 2 else []) for i in range(10)}
    return labelled([f"clip{i}" for i in range(10)], audio, CLASSES, events=events)


def test_heads_begin_at_the_share_of_active_frames(clips):
    share = 1 / (1 + np.exp(-clips.log_odds()))
    np.testing.assert_allclose(share[:2], [0.4, 0.05], atol=1e-3)
    assert 0 < share[2] < 1e-3
    long = labelled(["x"], Arrays([np.zeros(320_000, np.int16)]), CLASSES, events={"x": [(0.0, 5.0, "a")]})
    assert 1 / (1 + np.exp(-long.log_odds()[0])) == pytest.approx(0.25, abs=1e-3)


def test_start_from_takes_the_encoder_and_nothing_else(clips, tmp_path):
    step1("tiny", {"seed": 3, "sizes": {}}, downloads="none", out=str(tmp_path / "tiny" / "model.safetensors"))
    start = tmp_path / "tiny" / "model.safetensors"
    made = [
        start_from(start, clips, Recipe(head_init=init), generator=torch.Generator().manual_seed(seed))
        for init, seed in (("default", 1), ("default", 2), ("prior", 1))
    ]
    first = checkpoints.load_checkpoint(start.parent)[0].encoder.state_dict()
    for model in made:
        assert all(torch.equal(value, first[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(made[0].frame_head.weight, made[1].frame_head.weight)
    assert torch.equal(made[2].frame_head.bias, torch.from_numpy(clips.log_odds()).float())


def test_held_out_clips_are_no_training_clips(clips):
    kept, held = split(clips, 0.2, seed=1)
    assert len(held) == 2 and not set(kept.ids) & set(held.ids) and len(kept) == 8
    with pytest.raises(UserError, match="leaves one of the two parts empty"):
        split(clips, 0.01, seed=1)


def test_the_ensemble_is_scored_on_averaged_logits(clips):
    models = [build_model("tiny", n_classes=3).init_weights(torch.Generator().manual_seed(i)).eval() for i in (1, 2)]
    for model, value in zip(models, (-50.0, 60.0)):
        model.frame_head.bias.data[:] = torch.tensor([value, -value, 0.0])
    found, shown = score(models, clips, median_seconds=0.0, batch_size=4)
    alone, _ = score([models[1]], clips, median_seconds=0.0, batch_size=4)
    assert len(found) == 3 and found[1].value == alone[0].value
    assert [example.id for example in shown] == list(clips.ids[:6])


def test_a_users_mistake_in_a_job_is_one_sentence_in_its_log(tmp_path):
    log = tmp_path / "job.log"
    with pytest.raises(SystemExit) as left, job(str(log), threads=1):
        raise UserError("the file x is not there")
    assert left.value.code == 1 and log.read_text() == "framekd: the file x is not there\n"


def test_an_error_of_ours_leaves_its_traceback_in_the_log(tmp_path):
    log = tmp_path / "job.log"
    with pytest.raises(ZeroDivisionError), job(str(log), threads=1):
        print(1 / 0)
    assert "Traceback" in log.read_text() and "ZeroDivisionError" in log.read_text()
