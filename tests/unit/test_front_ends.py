"""Switches of the front ends: what each one changes, that checkpoints keep it, and that mixing is refused."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from test_pipeline import SMALL, checkpoint_job, reference_names

from framekd import checkpoints
from framekd.config import FrontEnds, UserError, load
from framekd.data import Arrays, chunks, labelled
from framekd.graph import Pack
from framekd.inference import batch_logits
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.models.mel import halved
from framekd.pipeline.checkpoints import make_checkpoints, start_from
from framekd.plan import Plan
from framekd.tasks import transfer

HALF = {"precision": "fp16"}
DEFAULTS = {
    "ATST-F": {"kind": "decibel", "n_fft": 1024, "bins": 64, "low": 60.0, "high": 7800.0},
    "BEATs": {"kind": "kaldi", "window": "povey", "scale": 32768.0, "centre_clip": False, "mean": 15.41663,
              "std": 6.55582},
    "fPaSST": {"kind": "emphasis", "n_fft": 512, "bins": 128, "low": 0.0, "high": 7000.0},
    "M2D": {"kind": "slaney", "n_fft": 400, "bins": 80, "low": 50.0, "high": 8000.0},
    "ASiT": {"kind": "kaldi", "window": "hann", "scale": 1.0, "centre_clip": True, "mean": -4.2677393,
             "std": 4.5689974},
}  # fmt: skip


def build(name, front_end=None):
    sizes = {**SMALL, **({"stem": [4, 8, 16]} if name == "fPaSST" else {})}
    model = build_model(name, n_classes=2, sizes=sizes, front_end=front_end)
    return model.init_weights(torch.Generator().manual_seed(1)).eval()


def clips(seconds=2):
    """A loud and a quiet clip: noise over a tone, the second with digital silence in it."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(16_000 * seconds) / 16_000
    waves = 0.3 * torch.sin(2 * torch.pi * 440 * time) + 0.1 * torch.randn(2, len(time), generator=generator)
    waves[1] *= 1e-3
    waves[1, :8_000] = 0
    return waves


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_checkpoint_of_default_front_ends_has_no_trace_of_the_switches(name):
    model = build(name)
    assert model.spec()["front_end"] == DEFAULTS[name] and model.encoder.front_end.switched == {}
    explicit = {key: of[0] for key, of in model.encoder.front_end.choices.items()}
    same = build(name, explicit)
    assert same.spec() == model.spec() and torch.equal(same.frontend(clips()), model.frontend(clips()))


def test_atsts_range_counts_from_the_clip_or_from_the_loudest_clip_of_the_batch():
    plain, batchwise = build("ATST-F"), build("ATST-F", {"maximum": "batch"})
    loud, quiet = clips()[:1], clips()[1:]
    both = torch.cat((loud, quiet))
    torch.testing.assert_close(plain.frontend(both)[1:], plain.frontend(quiet), rtol=0, atol=1e-6)
    assert torch.equal(batchwise.frontend(quiet), plain.frontend(quiet)), "a clip alone is a batch of one"
    found = batchwise.frontend(both)
    assert torch.equal(found[:1], plain.frontend(both)[:1])
    assert found[1].min() > plain.frontend(both)[1].min() + 0.1
    assert found[1].min() == pytest.approx(float(found[0].max()) - 80 * 2 / (50.6842 + 79.6482), abs=1e-4)


@pytest.mark.parametrize(("name", "least", "most"), [("fPaSST", 1e-3, 1.0), ("M2D", 1e-3, 1.0), ("ASiT", 1e-4, 0.2)])
def test_half_precision_moves_a_spectrogram_by_as_much_as_the_released_code_does(name, least, most):
    exact, rounded = build(name).frontend(clips()), build(name, HALF).frontend(clips())
    assert rounded.dtype == torch.float32 and rounded.isfinite().all()
    assert least < (rounded - exact).abs().max() < most
    assert (rounded - exact).abs().median() < 0.01


def test_half_precision_rounds_as_a_convolution_under_autocast_does():
    waves = clips()
    coefficients = torch.tensor([[[-0.97, 1.0]]])
    with torch.autocast("cpu", torch.float16):
        expected = F.conv1d(waves[:, None], coefficients)[:, 0]
    assert expected.dtype == torch.float16
    mine = halved(halved(waves)[:, 1:] - halved(waves)[:, :-1] * 0.97021484375)
    torch.testing.assert_close(mine, expected.float(), rtol=2**-10, atol=1e-7)

    front_end = build("M2D", HALF).encoder.front_end
    angle = 2 * torch.pi / 400 * torch.arange(400)[None, :] * torch.arange(201)[:, None]
    filters = torch.cat((angle.cos(), angle.sin()))[:, None] * front_end.window
    with torch.autocast("cpu", torch.float16):
        real, imaginary = F.conv1d(waves[:, None], filters, stride=160).float().chunk(2, dim=1)
    lines = front_end.half_lines(waves.unfold(-1, 400, 160)).transpose(1, 2)
    torch.testing.assert_close(lines, real.square() + imaginary.square(), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("BEATs", HALF, "no switch precision: fp16; its switches are none"),
        ("ATST-F", {"maximum": "loud"}, "no switch maximum: loud; its switches are maximum: clip or batch"),
        ("M2D", {"norm_stats": [1.0, 0.0]}, "a positive standard deviation"),
        ("fPaSST", {"norm_stats": [1.0, 2.0]}, "no switch norm_stats"),
    ],
)
def test_a_switch_that_does_not_exist_is_refused(name, values, words):
    with pytest.raises(UserError, match=words):
        build(name, values)


@pytest.mark.parametrize(
    ("name", "values"), [("ATST-F", {"maximum": "batch"}), ("ASiT", HALF), ("M2D", {"norm_stats": [-6.0, 3.0], **HALF})]
)
def test_switches_travel_in_the_checkpoint_and_another_front_end_is_refused(name, values, tmp_path):
    model = build(name, values)
    checkpoints.save_checkpoint(tmp_path, model, classes=["a", "b"], provenance={})
    assert json.loads((tmp_path / "spec.json").read_text())["front_end"] == DEFAULTS[name] | values
    loaded, _ = checkpoints.load_checkpoint(tmp_path)
    assert torch.equal(loaded.frontend(clips()), model.frontend(clips()))
    with pytest.raises(UserError, match="front_end"):
        checkpoints.load_encoder(build(name), tmp_path)

    data = labelled(["x"], Arrays([torch.zeros(160_000).short().numpy()]), ClassList.of("ab"), events={"x": []})
    recipe = load({}).teacher.recipe
    student = start_from(tmp_path, data, recipe, generator=torch.Generator().manual_seed(0))
    assert student.spec()["front_end"] == model.spec()["front_end"]

    plain = tmp_path / "plain"
    same = build(name)
    same.load_state_dict(model.state_dict())
    checkpoints.save_checkpoint(plain, same, classes=["a", "b"], provenance={})
    options = load({}).downstream.DC16_T2
    assert transfer._identity(options, plain) != transfer._identity(options, tmp_path)


def test_models_with_different_front_ends_do_not_share_spectrograms():
    plain, switched = build("ATST-F"), build("ATST-F", {"maximum": "batch"})
    waves = [(wave * 32767).short().numpy() for wave in clips(10)]
    data = labelled(["x", "y"], Arrays(waves), ClassList.of("ab"), events={"x": [], "y": []})
    [(batch, found)] = batch_logits([plain, switched], chunks(data, 2), device=torch.device("cpu"))
    with torch.no_grad():
        wanted = [model(model.frontend(batch.waveform))[0] for model in (plain, switched)]
    assert not torch.equal(*wanted)
    for (frames, _), expected in zip(found, wanted):
        assert torch.equal(frames, expected)


def test_the_configuration_reaches_the_jobs_that_make_checkpoints():
    values = {"front_ends": {"atst_maximum": "batch", "half_precision": True, "m2d_norm_stats": "file"}}
    wanted = {
        "ATST-F": {"maximum": "batch"}, "BEATs": {}, "fPaSST": HALF, "M2D": {**HALF, "norm_stats": "file"}, "ASiT": HALF
    }  # fmt: skip
    for step in ("step1", "step2"):
        job = Plan(load(values)).checkpoint_job(None, step, Pack("", tuple(wanted)))
        assert job.front_ends == wanted
    assert all(FrontEnds().of(name) == {} for name in wanted)
    with pytest.raises(UserError, match=r"front_ends\.atst_maximum"):
        load({"front_ends": {"atst_maximum": "loud"}})


@pytest.mark.parametrize("which", ["fixed", "file"])
@pytest.mark.parametrize("stats", [(-7.1, 4.2), (-6.0, 3.0)])
def test_m2ds_statistics_in_a_published_file_are_reported_and_used_if_asked_for(which, stats, tmp_path, capsys):
    model = build("M2D")
    fixed = model.frontend(clips())
    file = {f"model.m2d.backbone.{theirs}": value for theirs, value in reference_names(model).items()}
    file["model.m2d.backbone.norm_stats"] = torch.tensor(stats)
    torch.save(file, tmp_path / "M2D_ssl.pt")
    job = checkpoint_job(
        models=["M2D"],
        sizes={"M2D": SMALL},
        front_ends={"M2D": {"norm_stats": "file"} if which == "file" else {}},
        published={"M2D": {"url": (tmp_path / "M2D_ssl.pt").as_uri()}},
        downloads=str(tmp_path / "kept"),
    )
    out = tmp_path / "M2D"
    make_checkpoints(job, weights=[str(out / "model.safetensors")])
    made, spec = checkpoints.load_checkpoint(out)
    log, differs = capsys.readouterr().out, stats != (-7.1, 4.2)
    assert ("warning" in spec["provenance"]) == differs == ("norm_stats are (-6, 3)" in log)
    if differs:
        warning = spec["provenance"]["warning"]
        assert warning in log and "\n" not in warning and "always uses (-7.1, 4.2)" in warning
        assert f"m2d_norm_stats: {'fixed' if which == 'file' else 'file'}" in warning, "it names the other choice"
    if which == "fixed":
        assert spec["front_end"] == DEFAULTS["M2D"] and torch.equal(made.frontend(clips()), fixed)
    else:
        assert spec["front_end"]["norm_stats"] == pytest.approx(stats)
        mean, std = stats
        torch.testing.assert_close(made.frontend(clips()) * std + mean, fixed * 4.2 - 7.1, rtol=1e-5, atol=1e-5)


def test_m2ds_front_end_stays_in_fp32_when_the_model_does_not():
    model = build("M2D")
    assert torch.equal(copy.deepcopy(model).bfloat16().frontend(clips()), model.frontend(clips()))
