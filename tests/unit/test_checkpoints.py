"""Checkpoints: our own format, the published layouts, damaged files, and fetching."""

import hashlib
import http.server
import json
import pickle
import re
import threading
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch

from framekd.checkpoints import (
    fetch,
    load_checkpoint,
    load_encoder,
    load_reference,
    read_spec,
    read_weights,
    save_checkpoint,
)
from framekd.config import MODELS, UserError
from framekd.models import ENCODERS, build_model

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
THEIRS = {"ATST-F": "ATST-F", "BEATs": "BEATs", "fPaSST": "fpasst", "M2D": "M2D", "ASiT": "ASIT"}
RELEASED = {"fPaSST": ("model.fpasst.", "model."), "ASiT": ("model.asit.", "model."), "M2D": ("model.m2d.", "model.")}
RELEASED |= {"BEATs": ("model.beats.", "model.model."), "ATST-F": ("model.atst.", "model.atst.")}
HEADS = ("strong_head.", "weak_head.", "seq_model.")
SMALL = {"width": 64, "depth": 2, "heads": 2, "mlp": 128, "rnn_hidden": 8}
EXTRA = {"fPaSST": {"stem": [4, 8, 16]}, "BEATs": {"patch_dim": 32, "pos_kernel": 16}}
CLASSES = [f"class {i}" for i in range(7)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(name: str, *, seed: int = 1, **options) -> torch.nn.Module:
    sizes = {**SMALL, **EXTRA.get(name, {}), **options.pop("sizes", {})}
    return build_model(name, n_classes=7, sizes=sizes, **options).init_weights(seeded(seed))


def their_keys(name: str, *, teacher: bool = False, depth: int = 2) -> dict[str, tuple[int, ...]]:
    """The authors' names and shapes at the paper's sizes, of the first `depth` blocks."""
    keys = {}
    for line in (FIXTURES / f"state_dict_{THEIRS[name]}.tsv").read_text().splitlines()[1:]:
        key, of_teacher, of_student, *_ = line.split("\t")
        shape = of_teacher if teacher else of_student
        block = re.search(r"(blocks|layers)\.(\d+)\.", key)
        if shape != "-" and (block is None or int(block[2]) < depth):
            keys[key] = tuple(int(n) for n in shape.split("x"))
    return keys


def their_file(name: str, step: str, *, depth: int = 2) -> dict[str, torch.Tensor]:
    """A file as released for Step 1 (ssl), 2 (weak: 527 clip classes) or 3 (strong_1), without its storage."""
    canonical, released = RELEASED[name]
    state = {}
    for key, shape in their_keys(name, depth=depth).items():
        if "atst_mel" in key or (key.startswith("strong_head") and step != "strong_1"):
            continue
        if key.startswith("weak_head"):
            if step == "ssl":
                continue
            shape = (527 if step == "weak" else 447, *shape[1:])
        key = released + key.removeprefix(canonical) if key.startswith(canonical) else key
        state[key] = torch.zeros(1).expand(shape)
    return state


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
    path = directory / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


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
    model, state = full, their_file(full.name, step, depth=12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    if step == "strong_1":
        load_reference(model, state)
        assert not any(some(p).any() for p in model.parameters() if p.requires_grad)
        return
    with pytest.raises(UserError, match="heads=False"):
        load_reference(model, state)
    assert all(some(p).all() for p in model.parameters()), "a refused file must leave the model as it was"
    load_reference(model, state, heads=False)
    assert not any(some(p).any() for p in model.encoder.parameters() if p.requires_grad)
    assert model.frame_head.weight.all() and model.clip_head.weight.all()


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


def test_m2ds_statistics_come_with_the_weights(wide):
    model = wide("M2D")
    load_reference(model, {**upstream("M2D"), "norm_stats": torch.tensor([-6.0, 3.0])}, heads=False)
    assert model.encoder.norm_stats.tolist() == [-6.0, 3.0]
    clip = torch.randn(1, 16_000, generator=seeded(0)) * 0.1
    moved = model.frontend(clip) * 3.0 - 6.0
    load_reference(model, {**upstream("M2D"), "norm_stats": torch.tensor([-7.1, 4.2])}, heads=False)
    torch.testing.assert_close(model.frontend(clip) * 4.2 - 7.1, moved, atol=1e-5, rtol=1e-5)


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


# -- fetching --------------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, honours ranges, and ends the first answers early when told to."""

    content = bytes(range(256)) * 800
    breaks = 0
    ranges: list[str | None] = []  # noqa: RUF012 (the test resets it)

    def do_GET(self):
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            body = body[: len(body) // 3]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.ranges, Server.breaks = [], 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/weights.pt"
        running.shutdown()


def test_fetch_resumes_where_it_stopped_and_records_the_sum(server, tmp_path):
    Server.breaks = 2
    path = fetch(server, tmp_path / "sub" / "weights.pt")
    assert path.read_bytes() == Server.content
    third = len(Server.content) // 3
    assert Server.ranges == [None, f"bytes={third}-", f"bytes={third + (len(Server.content) - third) // 3}-"]
    digest = hashlib.sha256(Server.content).hexdigest()
    assert (tmp_path / "sub" / "weights.pt.sha256").read_text() == f"{digest}  weights.pt\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.pt", "weights.pt.sha256"]
    assert fetch(server, path, sha256=digest.upper()) == path and len(Server.ranges) == 3
    path.write_bytes(b"changed")
    with pytest.raises(UserError, match=r"SHA-256 .* expected"):
        fetch(server, path)


def test_fetch_takes_up_an_earlier_part_and_starts_again_after_a_wrong_one(server, tmp_path):
    Server.breaks = 1
    with pytest.raises(UserError, match=r"could not be fetched .*put the file there by hand as .*w\.pt"):
        fetch(server, tmp_path / "w.pt", attempts=1)
    assert (tmp_path / "w.pt.part").is_file() and not (tmp_path / "w.pt").exists()
    (tmp_path / "w.pt.part").write_bytes(b"x" * (len(Server.content) + 5))  # longer than the file: cannot be its start
    fetch(server, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").read_bytes() == Server.content


def test_fetch_refuses_what_is_not_the_pinned_file(server, tmp_path):
    with pytest.raises(UserError, match="expected 0000"):
        fetch(server, tmp_path / "w.pt", sha256="0" * 64)
    assert not (tmp_path / "w.pt").exists()


def test_a_file_put_there_by_hand_is_accepted_and_absence_is_explained(tmp_path):
    path = tmp_path / "by-hand.pt"
    for url in (None, "http://127.0.0.1:9/by-hand.pt"):
        with pytest.raises(UserError, match=r"put the file there by hand as .*by-hand\.pt"):
            fetch(url, path, timeout=2)
    path.write_bytes(b"mine")
    assert fetch(None, path) == path
    digest = hashlib.sha256(b"mine").hexdigest()
    assert (tmp_path / "by-hand.pt.sha256").read_text().startswith(digest)
    with pytest.raises(UserError, match="expected 1111"):
        fetch(None, path, sha256="1" * 64)
