"""Parts of the stages that the small run cannot see from outside."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framekd import checkpoints
from framekd.config import Recipe, UserError
from framekd.data import Arrays, labelled
from framekd.jobs import CheckpointJob
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.pipeline import job_log
from framekd.pipeline.checkpoints import make_checkpoints, start_from
from framekd.pipeline.evaluate import score, score_groups
from framekd.pipeline.train import split
from framekd.pipeline.watch import weak_map

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
    start = tmp_path / "tiny"
    make_checkpoints(checkpoint_job(seed=3), weights=[str(start / "model.safetensors")])
    made = [
        start_from(start, clips, Recipe(head_init=init), generator=torch.Generator().manual_seed(seed))
        for init, seed in (("default", 1), ("default", 2), ("prior", 1))
    ]
    first = checkpoints.load_checkpoint(start)[0].encoder.state_dict()
    for model in made:
        assert all(torch.equal(value, first[name]) for name, value in model.encoder.state_dict().items())
    assert not torch.equal(made[0].frame_head.weight, made[1].frame_head.weight)
    assert torch.equal(made[2].frame_head.bias, torch.from_numpy(clips.log_odds()).float())


def test_held_out_clips_are_no_training_clips(clips):
    kept, held = split(clips, 0.2, seed=1)
    assert len(held) == 2 and not set(kept.ids) & set(held.ids) and len(kept) == 8
    with pytest.raises(UserError, match="leaves one of the two parts empty"):
        split(clips, 0.01, seed=1)


def test_the_ensemble_is_scored_on_averaged_logits(noise_and_tones):
    """One model hears class `a` only and another `b` only: their mean has both, each alone has one."""
    clips = noise_and_tones
    models = [build_model("tiny", n_classes=3).init_weights(torch.Generator().manual_seed(i)).eval() for i in (1, 2)]
    for heard, model in enumerate(models):
        hear(model, clips, heard)
    found, shown = score(models, clips, median_seconds=0.0, batch_size=4, cross_check=2)
    together, _ = score(models, clips, median_seconds=0.0, batch_size=4, cross_check=2, ensemble=True)
    alone, _ = score([mean_model(models)], clips, median_seconds=0.0, batch_size=4)
    assert (len(found), len(together)) == (2, 1) and together[0].value == pytest.approx(alone[0].value, abs=1e-12)
    assert together[0].value > max(found[0].value, found[1].value) > 0.1
    assert [example.id for example in shown] == list(clips.ids[:6])


@pytest.mark.parametrize("ensemble", [False, True])
def test_each_group_is_scored_as_if_it_were_alone(noise_and_tones, ensemble):
    clips = noise_and_tones
    models = [build_model("tiny", n_classes=3).init_weights(torch.Generator().manual_seed(i)).eval() for i in (1, 2)]
    for heard, model in enumerate(models):
        hear(model, clips, heard)
    about = {"median_seconds": 0.0, "batch_size": 4, "cross_check": 1, "ensemble": ensemble}
    places = {"late": np.arange(4, 10), "early": np.arange(4)}
    groups = {name: {clips.ids[i] for i in some} for name, some in places.items()}
    found, shown = score_groups(models, clips, groups, **about)
    assert [example.id for example in shown] == [clips.ids[i] for i in places["late"]]
    for name, some in places.items():
        alone, _ = score(models, clips.select(some), **about)
        assert len(found[name]) == len(alone) == (1 if ensemble else 2)
        for one, other in zip(found[name], alone):
            assert one.value == pytest.approx(other.value, abs=1e-6)
            assert one.counts == other.counts


@pytest.fixture
def noise_and_tones(clips):
    """The clips with a loud tone in place of each event: `a` is low, `b` is high."""
    time = np.arange(160_000) / 16_000
    low, high = (8000 * np.sin(2 * np.pi * pitch * time) for pitch in (300, 3000))
    waves = []
    for i in range(10):
        wave = clips.waveform(i).astype(float)
        wave += low * (time < 4) + (high * ((time >= 5) & (time < 6)) if i % 2 else 0)
        waves.append(wave.astype(np.int16))
    events = {f"clip{i}": [(0.0, 4.0, "a")] + ([(5.0, 6.0, "b")] if i % 2 else []) for i in range(10)}
    return labelled([f"clip{i}" for i in range(10)], Arrays(waves), CLASSES, events=events)


def hear(model, clips, wanted):
    """Fit the frame head by least squares to hear one class, and nothing of the others."""
    with torch.no_grad():
        wave = torch.from_numpy(np.stack([clips.waveform(i) for i in range(10)]) / np.float32(32768))
        features = model.features(model.frontend(wave)).flatten(0, 1)
        target = torch.zeros(10, 250)
        for i, events in enumerate(clips.ground_truth().values()):
            for onset, offset, name in events:
                if name == CLASSES.names[wanted]:
                    target[i, int(25 * onset) : int(25 * offset)] = 1.0
        known = torch.cat((features, torch.ones(len(features), 1)), 1)
        weights = torch.linalg.lstsq(known, 20 * target.flatten()[:, None] - 10).solution[:, 0]
        model.frame_head.weight.zero_()
        model.frame_head.bias.fill_(-10.0)
        model.frame_head.weight[wanted], model.frame_head.bias[wanted] = weights[:-1], weights[-1]


def mean_model(models):
    """A model whose logits are the mean of those of `models`."""
    first, second = models

    class Mean(torch.nn.Module):
        name, encoder = "mean", first.encoder

        def frontend(self, waveform, **_):
            return first.frontend(waveform)

        def forward(self, mel, **options):
            pairs = [model(mel, **options) for model in (first, second)]
            return tuple(sum(parts) / 2 for parts in zip(*pairs))

    return Mean()


def test_mean_average_precision_after_step_2_is_scikit_learns(clips):
    from sklearn.metrics import average_precision_score

    labels = {name: ["a"] if i % 3 else ["b"] for i, name in enumerate(clips.ids)}
    weak = labelled(clips.ids, clips.audio, CLASSES, clip_labels=labels)
    model = build_model("tiny", n_classes=3).init_weights(torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        wave = torch.from_numpy(np.stack([clips.waveform(i) for i in range(10)]) / np.float32(32768))
        scores = model(model.frontend(wave))[1].numpy()
    truth = np.array([[name in labels[clip] for name in ("a", "b")] for clip in clips.ids])
    expected = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in range(2)])
    assert weak_map(model, weak).value == pytest.approx(expected, abs=1e-9) and 0.2 < expected < 1


def checkpoint_job(**values):
    about = {"version": 1, "step": "step1", "models": ["tiny"], "sizes": {"tiny": {}}, "published": {}, "seed": None}
    front_ends = {name: {} for name in values.get("models", ["tiny"])}
    return CheckpointJob(**about | {"front_ends": front_ends} | values)


def test_step_1_takes_a_published_file_from_its_address(tmp_path):
    model = build_model("ATST-F", n_classes=1, sizes=SMALL).init_weights(torch.Generator().manual_seed(5))
    encoder = {f"model.atst.{theirs}": value for theirs, value in reference_names(model).items()}
    (tmp_path / "site").mkdir()
    torch.save(encoder, tmp_path / "site" / "ATST-F_ssl.pt")
    published = {"ATST-F": {"url": (tmp_path / "site" / "ATST-F_ssl.pt").as_uri()}}
    out = tmp_path / "ATST-F" / "model.safetensors"
    job = checkpoint_job(
        models=["ATST-F"], sizes={"ATST-F": SMALL}, published=published, downloads=str(tmp_path / "kept")
    )
    make_checkpoints(job, weights=[str(out)])
    made, spec = checkpoints.load_checkpoint(out.parent)
    assert spec["provenance"]["file"] == "ATST-F_ssl.pt" and (tmp_path / "kept" / "ATST-F_ssl.pt.sha256").is_file()
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, made.encoder.state_dict()[name]), name


SMALL = {"width": 32, "depth": 1, "heads": 2}


def reference_names(model):
    """The encoder's weights by the names of the authors' files."""
    renames = [(ours, theirs) for theirs, ours in model.encoder.REFERENCE.renames]
    out = {}
    for name, value in model.encoder.state_dict().items():
        if name.startswith("front_end."):
            continue
        for ours, theirs in renames:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        out[name] = value
    return out


def given(tmp_path):
    """What Snakemake gives a script, as far as its log goes."""
    log, params = [str(tmp_path / "job.log")], SimpleNamespace(job={"version": 1})
    return SimpleNamespace(rule="a", log=log, threads=1, resources={}, params=params, input=["in"], output=["out"])


def test_a_users_mistake_in_a_job_is_one_sentence_in_its_log(tmp_path):
    with pytest.raises(SystemExit) as left, job_log(given(tmp_path)):
        raise UserError("the file x is not there")
    assert left.value.code == 1 and (tmp_path / "job.log").read_text() == "framekd: the file x is not there\n"
    assert not (tmp_path / "job.json").exists()


def test_an_error_of_ours_leaves_its_traceback_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), job_log(given(tmp_path)):
        print(1 / 0)
    log = (tmp_path / "job.log").read_text()
    assert "Traceback" in log and "ZeroDivisionError" in log


def test_a_job_that_ends_well_leaves_its_record(tmp_path):
    with job_log(given(tmp_path)):
        print("done")
    assert (tmp_path / "job.log").read_text() == "done\n"
    found = json.loads((tmp_path / "job.json").read_text())
    assert (found["rule"], found["job"], found["inputs"], found["outputs"]) == ("a", {"version": 1}, ["in"], ["out"])
