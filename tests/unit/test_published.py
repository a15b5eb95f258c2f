"""Models by name: fetched from a real server that may misbehave, kept, checked, and refused with one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from release_server import release_server
from released_files import their_file

from framekd import fetch as fetching
from framekd import releases
from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.config import MODELS, Config, UserError
from framekd.labels import known_strong, known_weak
from framekd.metrics._compile import cache_folder
from framekd.models import build_model
from framekd.published import open_detector, open_model

RECORDING = sorted((Path(__file__).parents[2] / "miniature" / "recordings").glob("*.ogg"))[0]
SPEECH = known_strong()[0].names.index("Speech")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty local release, and an empty cache."""
    with release_server(tmp_path / "site") as server:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache_folder()))  # compiled kernels stay where they are
        monkeypatch.setenv("FRAMEKD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("FRAMEKD_PUBLISHED", server.url)
        monkeypatch.setattr(fetching, "_pause", lambda state: 0.0)
        yield server


def release(site, name: str, **changes: torch.Tensor) -> releases.Release:
    """Publish a checkpoint in the authors' layout; all its weights are 0 but `changes`."""
    found = releases.named(name)
    state = their_file(found.model, "strong_1" if found.variant == "strong" else found.variant, depth=12)
    torch.save({**state, **changes}, site.folder / "v0.0.1" / found.file)
    return found


@pytest.mark.parametrize("name", [release.name for release in releases.RELEASES])
def test_a_published_model_is_opened_by_its_name_and_kept(site, name, capsys):
    bias = torch.arange(447.0) if ":" not in name else torch.zeros(0)
    published = release(site, name, **({"strong_head.bias": bias} if ":" not in name else {}))
    model, spec = open_model(name.lower())
    assert not model.training and (model.name, spec["model"]) == (published.model,) * 2
    strong, weak = known_strong()[0].names, known_weak().names
    expected = {"strong": (strong, strong), "weak": (("none",), weak), "ssl": (("none",),) * 2}[published.variant]
    assert (tuple(spec["classes"]), tuple(spec["clip_classes"])) == expected
    assert len(strong) == 447 and list(strong) == sorted(strong)
    if published.variant == "strong":
        assert torch.equal(model.frame_head.bias, bias)
    said = capsys.readouterr().err
    assert f"fetching {name}" in said and str(published.path) in said and published.url in said
    assert len(published.path.with_name(published.file + ".sha256").read_text().split()[0]) == 64
    if name == "ATST-F":
        again, _ = open_model(name)
        assert torch.equal(again.frame_head.bias, bias) and capsys.readouterr().err == ""
    assert [path for path, _ in site.asked] == [f"v0.0.1/{published.file}"]  # once


def test_predict_names_the_classes_of_a_published_model(site, tmp_path):
    bias = torch.full((447,), -9.0)
    bias[SPEECH] = 9.0
    release(site, "ATST-F", **{"strong_head.bias": bias})
    assert main(["predict", str(RECORDING), "--model", "atst-f", "--out", str(tmp_path)]) == 0
    _, *events = (tmp_path / f"{RECORDING.name}.events.tsv").read_text().splitlines()
    assert [event.split("\t")[2] for event in events] == ["Speech"]


def test_a_broken_transfer_is_continued(site):
    published = release(site, "ATST-F")
    site.faults += ["breaks off", "breaks off"]
    open_model("ATST-F")
    size = (site.folder / "v0.0.1" / published.file).stat().st_size
    assert published.path.stat().st_size == size
    first, second, third = (wanted for _, wanted in site.asked)
    assert first is None and second == f"bytes={size // 3}-" and int(third[6:-1]) > size // 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("page", "a web page came instead of the file"),
        ("hidden page", "what came is not the checkpoint and was removed"),
        ("shorter than it is", "what came is not the checkpoint and was removed"),
        ("longer than it is", "the connection ended after"),
    ],
)
def test_what_is_not_the_file_is_not_kept(site, fault, words, capsys):
    published = release(site, "ATST-F")
    site.faults += [fault] * 5
    assert main(["predict", str(RECORDING), "--model", "ATST-F"]) == 1
    said = capsys.readouterr().err
    assert words in said and published.url in said and "Traceback" not in said
    assert not published.path.exists() and not list(published.path.parent.glob("*.sha256"))
    if fault == "shorter than it is":
        site.faults.clear()
        open_model("ATST-F")


def test_two_processes_fetch_a_model_once(site):
    release(site, "ATST-F")
    code = "from framekd.published import open_model; print(open_model('ATST-F')[0].n_classes)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == [b"447\n"] * 2
    assert len(site.asked) == 1


def test_a_file_that_changed_in_the_cache_is_refused(site):
    published = release(site, "ATST-F")
    open_model("ATST-F")
    content = bytearray(published.path.read_bytes())
    content[-1] ^= 1
    published.path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(published.path))} has SHA-256 .*remove it to fetch it again"):
        open_model("ATST-F")


def test_without_network_the_sentence_says_which_file_from_where_to_where(site, monkeypatch, capsys):
    published = release(site, "ATST-F")
    there = (site.folder / "v0.0.1" / published.file).read_bytes()
    monkeypatch.setenv("FRAMEKD_PUBLISHED", "http://127.0.0.1:9")  # nobody listens
    assert main(["predict", str(RECORDING), "--model", "ATST-F"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"framekd: http://127.0.0.1:9/ATST-F_strong_1.pt could not be fetched (Connection refused): "
        f"put the file there by hand as {published.path}, or try again."
    )
    published.path.write_bytes(there[:-9])  # laid there by hand, cut off
    with pytest.raises(UserError, match="damaged or incomplete"):
        open_model("ATST-F")
    published.path.write_bytes(there)
    assert open_model("ATST-F")[0].n_classes == 447 and site.asked == []
    monkeypatch.setenv("FRAMEKD_PUBLISHED", (site.folder / "v0.0.1").as_uri())  # a mirror on a disk
    published.path.unlink()
    assert open_model("ATST-F")[0].n_classes == 447


class Code:
    """Pickles to a call that leaves a file behind."""

    def __reduce__(self):
        return (Path.touch, (Path(os.environ["FRAMEKD_CACHE"]) / "was run",))


def test_code_in_a_file_is_not_run(site):
    published = release(site, "ATST-F", extra=Code())
    with pytest.raises(UserError, match="refused: it holds more than tensors"):
        open_model("ATST-F")
    assert not (published.path.parents[1] / "was run").exists() and not published.path.exists()


def test_weights_of_another_model_are_refused(site):
    other, published = release(site, "ASiT"), releases.named("BEATs")
    (site.folder / "v0.0.1" / other.file).rename(site.folder / "v0.0.1" / published.file)
    with pytest.raises(UserError, match=r"was removed \(These weights are not BEATs's"):
        open_model("BEATs")
    release(site, "fPaSST:weak")
    (site.folder / "v0.0.1/fpasst_weak.pt").rename(site.folder / "v0.0.1/fpasst_strong_1.pt")
    with pytest.raises(UserError, match=r"not fPaSST's weights of Step 3: no head in the file"):
        open_model("fPaSST")


# -- names and folders -----------------------------------------------------------------------------------------------


def tiny(folder: Path, classes: list[str]) -> Path:
    model = build_model("tiny", n_classes=len(classes)).init_weights(torch.Generator().manual_seed(0))
    return save_checkpoint(folder, model, classes=classes, provenance={})


def test_a_run_stands_for_its_first_seed(tmp_path, capsys):
    for seed in (10, 2):
        tiny(tmp_path / "proposed" / "BEATs" / f"seed{seed}", ["a", f"of seed {seed}"])
    assert open_model(tmp_path / "proposed" / "BEATs")[1]["classes"][1] == "of seed 2"
    assert "has 2 seeds; seed2 is used" in capsys.readouterr().err
    assert open_model(str(tmp_path / "proposed" / "BEATs" / "seed10"))[1]["classes"][1] == "of seed 10"
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"holds 2 checkpoints; give one of them, such as .*BEATs/seed10"):
        open_model(tmp_path / "proposed")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("beets", "did you mean BEATs?"),
        ("BEATs:week", "did you mean BEATs:weak?"),
        ("whisper", "published models are ATST-F, BEATs, fPaSST, M2D, ASiT (framekd models)"),
        ("results/nowhere", "There is no checkpoint in results/nowhere"),
    ],
)
def test_an_unknown_name_is_one_sentence(name, words, capsys):
    assert main(["predict", str(RECORDING), "--model", name]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_an_encoder_without_classes_is_refused_where_events_are_asked_for(site, tmp_path, capsys):
    folder = tiny(tmp_path / "step1", ["none"])
    assert open_model(folder)[1]["classes"] == ["none"]
    for name in (str(folder), "BEATs:ssl", "beats:WEAK"):
        assert main(["predict", str(RECORDING), "--model", name]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"framekd: {name}: detects nothing") and said.count("\n") == 1
        assert "use --model BEATs" in said or name == str(folder)
    assert site.asked == []  # nothing was fetched for that
    assert open_detector(tiny(tmp_path / "trained", ["none", "a"]))[0].n_classes == 2


def test_models_lists_what_there_is(site, capsys):
    published = release(site, "M2D")
    open_model("M2D")
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [f"{name}{variant}" for name in MODELS for variant in ("", ":weak", ":ssl")]
    assert [name for name, row in rows.items() if row["here"]] == ["M2D"]
    assert rows["M2D"]["size"] == published.path.stat().st_size and rows["BEATs"]["size"] == 4 * 90_999_278
    assert rows["ASiT:ssl"] | {"path": ""} == {
        "name": "ASiT:ssl",
        "step": 1,
        "classes": "none",
        "size": 4 * 85_482_240,
        "address": f"{os.environ['FRAMEKD_PUBLISHED']}/ASIT_ssl.pt",
        "licence": "MIT",
        "here": False,
        "path": "",
    }
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18 and lines[0].split() == ["name", "step", "classes", "size", "licence", "here", "address"]


def test_the_configuration_has_the_same_addresses(monkeypatch):
    monkeypatch.setenv("FRAMEKD_PUBLISHED", "http://mirror")
    config = Config()
    for name in MODELS:
        assert config.step1.external[name].url == releases.named(f"{name}:ssl").published
        assert config.step2.external[name].url == releases.named(f"{name}:weak").published
    assert releases.mirrored(config.step1.external["M2D"].url) == "http://mirror/M2D_ssl.pt"
    assert releases.mirrored("http://other/M2D_ssl.pt") == "http://other/M2D_ssl.pt"
