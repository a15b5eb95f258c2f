"""Checkpoints: our own format, the published layouts and damaged files."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from released_files import RELEASED, their_file, their_keys

from framekd.checkpoints import (
    load_checkpoint,
    load_encoder,
    load_reference,
    read_spec,
    read_weights,
    save_checkpoint,
)
from framekd.config import MODELS, UserError
from framekd.models import ENCODERS, build_model

HEADS = ("strong_head.", "weak_head.", "seq_model.")
SMALL = {"width": 64, "depth": 2, "heads": 2, "mlp": 128, "rnn_hidden": 8}
EXTRA = {"fPaSST": {"stem": [4, 8, 16]}, "BEATs": {"patch_dim": 32, "pos_kernel": 16}}
CLASSES = [f"class {i}" for i in range(7)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, *, seed: int = 1, **options) -> torch.nn.Module:
    sizes = {**SMALL, **EXTRA.get(name, {}), **options.pop("sizes", {})}
    return build_model(name, n_classes=7, sizes=sizes, **options).init_weights(seeded(seed))


OURS = {
    "model.m2d.backbone.": "model.m2d.",
    "model.atst.patch_embed.patch_embed.": "model.atst.patch_embed.",
    "model.atst.norm_frame.": "model.atst.norm.",
    "model.beats.encoder.layers.0.self_attn.relative_attention_bias.": "model.beats.relative_bias.",
    "model.beats.encoder.layers.": "model.beats.blocks.",
    "model.beats.encoder.layer_norm.": "model.beats.position_norm.",
    "model.beats.encoder.pos_conv.0.parametrizations.weight.original0": "model.beats.pos_conv.gain",
    "model.beats.encoder.pos_conv.0.parametrizations.weight.original1": "model.beats.pos_conv.direction",
    "model.beats.encoder.pos_conv.0.": "model.beats.pos_conv.",
    "strong_head.": "frame_head.",
    "weak_head.": "clip_head.",
}
"""Beginnings of the authors' names that differ from this project's."""


def our_name(name: str, key: str) -> str:
    """This project's name of a tensor of the authors' model `name`."""
    for theirs, ours in OURS.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    prefix = RELEASED[name][0]
    return "encoder." + key.removeprefix(prefix) if key.startswith(prefix) else key


def constants(name: str, *, depth: int) -> dict[str, float]:
    """A constant for each of the authors' tensors, all different but for the table that BEATs' layers share."""
    keys = their_keys(name, depth=depth)
    return {key: 1.0 if "relative_attention_bias" in key else i + 2.0 for i, key in enumerate(keys)}


def some(tensor: torch.Tensor) -> torch.Tensor:
    """A few values all over a large tensor."""
    return tensor.detach().flatten()[:: max(1, tensor.numel() // 64)]


@pytest.fixture(scope="module")
def wide():
    """Models of the paper's sizes with two blocks, built once each."""
    built = {}

    def build(name):
        if name not in built:
            built[name] = build_model(name, sizes={"depth": 2})
        return built[name]

    return build


@pytest.fixture(scope="module", params=MODELS)
def full(request):
    """Each model at the paper's sizes, one at a time."""
    return build_model(request.param)


# -- our own format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_round_trip_is_exact_to_the_bit(name, tmp_path):
    model = small(name, sequence_model="bigru", n_clip_classes=9)
    save_checkpoint(tmp_path / "a", model, classes=CLASSES, provenance={"step": 3}, extra={"note": "é"})
    again, spec = load_checkpoint(tmp_path / "a")
    assert not again.training
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert spec["classes"] == CLASSES and spec["clip_classes"] is None and spec["extra"] == {"note": "é"}
    assert (spec["sample_rate"], spec["frame_seconds"], spec["provenance"]) == (16_000, 0.04, {"step": 3})
    save_checkpoint(tmp_path / "b", again, classes=CLASSES, provenance={"step": 3}, extra={"note": "é"})
    for file in ("model.safetensors", "spec.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.safetensors", "spec.json"]


def test_weights_file_holds_tensors_and_nothing_else(tmp_path):
    model = small("tiny")
    save_checkpoint(tmp_path, model, classes=CLASSES, provenance={})
    path = tmp_path / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == set(model.state_dict()) and file.metadata() == {"format": "pt"}
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(path.read_bytes())  # noqa: S301 (that it is no pickle is the point)


def test_step_3_starts_from_the_encoder_of_step_2(tmp_path):
    step2 = small("BEATs", n_clip_classes=527)
    save_checkpoint(tmp_path, step2, classes=CLASSES, provenance={"step": 2}, clip_classes=["x"] * 527)
    step3 = small("BEATs", seed=2, sequence_model="bigru", sizes={"attention_dropout": 0.0, "rnn_hidden": 4})
    heads = step3.frame_head.weight.clone()
    load_encoder(step3, tmp_path)
    for key, value in step2.state_dict().items():
        if key.startswith("encoder."):
            assert torch.equal(value, step3.state_dict()[key])
    assert torch.equal(step3.frame_head.weight, heads)
    with pytest.raises(UserError, match="holds an encoder with model 'BEATs', not 'tiny'"):
        load_encoder(small("tiny"), tmp_path)
    with pytest.raises(UserError, match="width 64, not 96"):
        load_encoder(small("BEATs", sizes={"width": 96}), tmp_path)
    model, _ = load_checkpoint(tmp_path, heads=False)
    assert torch.equal(model.encoder.relative_bias.weight, step2.encoder.relative_bias.weight)
    assert not torch.equal(model.clip_head.weight, step2.clip_head.weight)


def test_class_lists_must_fit_the_heads(tmp_path):
    with pytest.raises(UserError, match="6 class names for a frame head of 7"):
        save_checkpoint(tmp_path, small("tiny"), classes=CLASSES[:6], provenance={})
    with pytest.raises(UserError, match="2 names for a clip head of 7"):
        save_checkpoint(tmp_path, small("tiny"), classes=CLASSES, provenance={}, clip_classes=["a", "b"])
    save_checkpoint(tmp_path, small("tiny"), classes=CLASSES, provenance={})
    change(tmp_path, classes=CLASSES[:5])
    with pytest.raises(UserError, match="names 5 classes for 7 outputs"):
        load_checkpoint(tmp_path)


def change(directory: Path, **values) -> None:
    """Write other values, and a specification as earlier versions wrote it: without its own sum."""
    path = directory / "spec.json"
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "spec_sha256"}))


def test_changed_class_names_are_noticed_and_an_older_specification_is_read(tmp_path):
    save_checkpoint(tmp_path, small("tiny"), classes=CLASSES, provenance={"seeds": (1, 2), 3: 0.1})
    path = tmp_path / "spec.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(content.items()))))  # spaces and order do not count
    assert read_spec(tmp_path) == content
    for changed in ({"classes": CLASSES[::-1]}, {"provenance": {}}, {"extra": {"new": 1}}):
        path.write_text(json.dumps({**content, **changed}))
        with pytest.raises(UserError, match=r"spec.json was changed after it was written.*remove the entry"):
            load_checkpoint(tmp_path)
    change(tmp_path, classes=CLASSES[::-1])
    assert load_checkpoint(tmp_path)[1]["classes"] == CLASSES[::-1]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sample_rate": 32_000}, "sample_rate is 32000"),
        ({"frame_seconds": 0.01}, "frame_seconds is 0.01"),
        ({"front_end": {"kind": "other"}}, "front_end is"),
        ({"model": "PaSST"}, "no model called 'PaSST'"),
        ({"n_classes": 8, "classes": [*CLASSES, "8"]}, r"frame_head.weight as \(7, 64\) instead of \(8, 64\)"),
        ({"sequence_model": "bigru"}, r"has no rnn.weight_ih_l0"),
        ({"format": "framekd-checkpoint-0"}, "not a specification of format"),
        ({"weights_sha256": "0" * 64}, "not the file that spec.json beside it was written for"),
    ],
)
def test_a_specification_that_does_not_fit_is_refused(tmp_path, values, sentence):
    save_checkpoint(tmp_path, small("tiny"), classes=CLASSES, provenance={})
    change(tmp_path, **values)
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(tmp_path)


def test_missing_and_cut_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint in .*spec.json"):
        load_checkpoint(tmp_path / "nowhere")
    save_checkpoint(tmp_path, small("tiny"), classes=CLASSES, provenance={})
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for cut in (4, 200, len(content) - 1):
        weights.write_bytes(content[:cut])
        with pytest.raises(UserError, match="damaged or incomplete"):
            load_checkpoint(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="no weights file"):
        load_checkpoint(tmp_path)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(UserError, match=r"spec.json is damaged"):
        read_spec(tmp_path)


# -- published files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["ssl", "weak", "strong_1"])
def test_released_layouts_load(step, full):
    model, values = full, constants(full.name, depth=12)
    state = their_file(model.name, step, depth=12, values=values)
    expected = {our_name(model.name, key): value for key, value in values.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1.0)
    if step == "strong_1":
        load_reference(model, state)
    else:
        with pytest.raises(UserError, match="heads=False"):
            load_reference(model, state)
        assert all((some(p) == -1).all() for p in model.parameters()), "a refused file must not change the model"
        load_reference(model, state, heads=False)
        expected |= dict.fromkeys(("frame_head.weight", "frame_head.bias", "clip_head.weight", "clip_head.bias"), -1.0)
    parameters = dict(model.named_parameters())
    assert len(parameters) > 100
    wrong = {key: some(p).unique().tolist() for key, p in parameters.items() if (some(p) != expected[key]).any()}
    assert wrong == {}


def test_matching_heads_are_taken_and_others_kept(wide):
    weak = their_file("ASiT", "weak")
    model = build_model("ASiT", n_clip_classes=527, sizes={"depth": 2})
    load_reference(model, weak, heads="matching")
    assert not model.clip_head.weight.any() and model.frame_head.weight.any()
    model = wide("ASiT")
    torch.nn.init.ones_(model.clip_head.weight)
    load_reference(model, weak, heads="matching")
    assert model.clip_head.weight.all()


@pytest.mark.parametrize("name", MODELS)
def test_damage_is_named_and_changes_nothing(name, wide):
    model, state = wide(name), their_file(name, "strong_1")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    key = next(k for k in state if "blocks.1." in k or "layers.1." in k)
    ours = "blocks.1."
    cases = [
        ({k: v for k, v in state.items() if k != key}, rf"missing: encoder.{ours}.*\(1 in all\)"),
        ({**state, key + "x": state[key]}, rf"unexpected: {key}x \(1 in all\)"),
        ({**state, key: torch.zeros(5)}, rf"of another shape: encoder.{ours}.* \(5,\) in the file.*\(1 in all\)"),
        ({}, "it is empty"),
        ({**state, "epoch": 3}, "'epoch' is not a tensor"),
    ]
    other = their_file("M2D" if name != "M2D" else "ASiT", "strong_1")
    cases.append((other, f"not {name}'s as it is built here: missing: .*unexpected: "))
    for damaged, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            load_reference(model, damaged)
        assert all((some(p) == 2.0).all() for p in model.parameters())


def test_a_teacher_file_does_not_pass_for_a_student(wide):
    state = {k: torch.zeros(1).expand(s) for k, s in their_keys("ATST-F", teacher=True).items()}
    with pytest.raises(UserError, match=r"unexpected: rnn\..*of another shape: frame_head.weight"):
        load_reference(wide("ATST-F"), state)
    load_reference(wide("ATST-F"), state, heads=False)


def test_beats_alias_tables_must_agree_and_old_weight_norm_names_load(wide):
    state = their_file("BEATs", "strong_1")
    alias = next(k for k in state if "layers.1." in k and "relative_attention_bias" in k)
    with pytest.raises(UserError, match="which all layers share"):
        load_reference(wide("BEATs"), {**state, alias: torch.ones(320, 12)})
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = {}
    for key, value in state.items():
        for new, name in old.items():
            key = key.replace(new, name)
        renamed[key] = value
    assert renamed.keys() != state.keys()
    load_reference(wide("BEATs"), renamed)


def upstream(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    canonical = {"M2D": "model.m2d.backbone."}.get(name, RELEASED[name][0])
    keys = {k: s for k, s in their_keys(name).items() if k.startswith(canonical)}
    return {prefix + k.removeprefix(canonical): torch.zeros(1).expand(s) for k, s in keys.items()}


def test_upstream_originals_load(wide):
    head = {"head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    atst = {k.replace("norm_frame", "norm"): v for k, v in upstream("ATST-F", "model.teacher.encoder.").items()}
    atst |= {"model.student.encoder.pos_embed": torch.zeros(3), "model.teacher.projector.0.weight": torch.zeros(3)}
    files = {
        "BEATs": {"cfg": {"layers": 12}, "model": {**upstream("BEATs"), "predictor.weight": torch.zeros(2)}},
        "M2D": {"model": {**upstream("M2D"), "audio_proj.0.weight": torch.zeros(2), **head}},
        "ATST-F": {"state_dict": atst, "hyper_parameters": {}},
        "ASiT": {"student": {}, "teacher": {**upstream("ASiT", "module.backbone."), "module.head.w": torch.zeros(1)}},
    }
    for name, file in files.items():
        model = wide(name)
        torch.nn.init.ones_(model.encoder.blocks[0].fc1.weight if name == "BEATs" else model.encoder.norm.weight)
        with pytest.raises(UserError, match="heads=False"):
            load_reference(model, file)
        load_reference(model, file, heads=False)
        assert not any(p.any() for p in model.encoder.parameters() if p.requires_grad)


def test_m2ds_statistics_come_with_the_weights_and_its_front_end_does_not_use_them(wide):
    model = wide("M2D")
    clip = torch.randn(1, 16_000, generator=seeded(0)) * 0.1
    before = model.frontend(clip)
    load_reference(model, {**upstream("M2D"), "norm_stats": torch.tensor([-6.0, 3.0])}, heads=False)
    assert model.encoder.norm_stats.tolist() == model.encoder.other_statistics() == [-6.0, 3.0]
    assert torch.equal(model.frontend(clip), before)
    load_reference(model, {**upstream("M2D"), "norm_stats": torch.tensor([-7.1, 4.2])}, heads=False)
    assert model.encoder.other_statistics() is None


def test_deits_imagenet_weights_become_fpassts_start():
    """Step 1 of fPaSST: 3 → 16 channels at the same response, 24 × 24 positions → 1 × 250."""
    model = build_model("fPaSST", sizes={"depth": 2}).init_weights(seeded(0))
    stem = model.encoder.conv_in_2.weight.clone()
    deit = upstream("fPaSST")
    for gone in [k for k in deit if "new_pos" in k or "conv_in" in k]:
        del deit[gone]
    generator = seeded(4)
    grid = torch.randn(24, generator=generator)  # varies along time only, and linearly in the channel
    deit["pos_embed"] = torch.cat([torch.ones(1, 2, 768), grid.repeat(24)[None, :, None].expand(1, 576, 768)], dim=1)
    deit["patch_embed.proj.weight"] = torch.randn(768, 3, 16, 16, generator=generator)
    deit |= {"head.weight": torch.zeros(1000, 768), "head_dist.weight": torch.zeros(1000, 768)}
    load_reference(model, {"model": deit}, heads=False)
    encoder = model.encoder
    assert torch.equal(encoder.conv_in_2.weight, stem) and encoder.new_pos_embed.unique().tolist() == [1.0]
    filters = encoder.patch_embed.proj.weight
    assert filters.shape == (768, 16, 128, 2)
    torch.testing.assert_close(filters[:, 4].flatten(), deit["patch_embed.proj.weight"][:, 1].flatten() * 3 / 16)
    wide = torch.nn.functional.interpolate(grid[None, None, None], (1, 250), mode="bicubic", align_corners=False)
    torch.testing.assert_close(encoder.time_new_pos_embed[0, 5, 0], wide.flatten(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.freq_new_pos_embed[0, 5, 0, 0], wide.mean(), atol=1e-5, rtol=1e-4)


def test_tiny_has_no_published_weights():
    with pytest.raises(UserError, match="tiny has no published weights"):
        load_reference(small("tiny"), {"a": torch.zeros(1)})


class Trap:
    def __reduce__(self):
        return (print, ("this pickle ran",))


def test_files_with_code_or_damage_are_refused(tmp_path, capsys):
    torch.save({"weight": torch.ones(3), "epoch": 1}, tmp_path / "good.pt")
    assert read_weights(tmp_path / "good.pt")["weight"].tolist() == [1, 1, 1]
    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match=r"trap.pt is refused: .*would run its code"):
        read_weights(tmp_path / "trap.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(UserError, match=r"old.pt is"):
        read_weights(tmp_path / "old.pt")
    assert "ran" not in capsys.readouterr().out
    content = (tmp_path / "good.pt").read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 30):
        (tmp_path / "cut.pt").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"cut.pt is damaged or incomplete"):
            read_weights(tmp_path / "cut.pt")
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_weights(tmp_path / "list.pt")
    with pytest.raises(UserError, match="no weights file"):
        read_weights(tmp_path / "absent.pt")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(tmp_path / "good.pt", "folder/checkpoint-30.pth")
    assert read_weights(tmp_path / "packed.zip")["weight"].tolist() == [1, 1, 1]
