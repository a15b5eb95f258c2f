"""Models on the Hugging Face hub, with huggingface_hub and a local server of the same protocol."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Large, as_the_hub, forget

from framekd import hub
from framekd.checkpoints import load_checkpoint, save_checkpoint
from framekd.cli import main
from framekd.config import UserError
from framekd.models import build_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    model = build_model("tiny", n_classes=2, sizes={"width": 16, "depth": 1}).init_weights(torch.Generator())
    return save_checkpoint(tmp_path_factory.mktemp("m"), model, classes=["Bell", "Dog"], provenance={"seed": 3})


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(repositories, requests) of a hub of which every file is part of its commit."""
    with as_the_hub(tmp_path, monkeypatch) as hub_here:
        yield hub_here


@pytest.fixture
def lfs(tmp_path, monkeypatch):
    """(repositories, requests, folder of the large files) of a hub with Git LFS."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    (storage := tmp_path / "storage").mkdir()
    with as_the_hub(tmp_path, monkeypatch, storage) as (repositories, seen):
        yield repositories, seen, storage


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_pushed_can_be_opened_again(checkpoint, server, tmp_path, capsys):
    repositories, seen = server
    arguments = ["export", "--model", str(checkpoint), "--format", "torch", "--out", str(tmp_path / "a" / "tiny.pt")]
    assert main([*arguments, "--push", "me/bells"]) == 0
    assert "/me/bells/commit/" in capsys.readouterr().out
    assert set(repositories["me/bells"]) >= {"README.md", "model.safetensors", "spec.json", "tiny.pt"}
    assert b"--model hf:me/bells" in repositories["me/bells"]["README.md"]
    again, spec = load_checkpoint(hub.resolve("hf:me/bells"))
    ours, wanted = load_checkpoint(checkpoint)
    assert spec["classes"] == wanted["classes"] and spec["provenance"] == {"seed": 3}
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))
    assert not [line for line in seen if line.startswith("GET") and line.endswith(".pt")], "only what is needed"
    out = tmp_path / "b" / "tiny.pt"
    assert main(["export", "--from", "me/bells", "--format", "torch", "--out", str(out)]) == 0 and out.is_file()


def test_the_cache_serves_without_the_server(checkpoint, server):
    repositories, seen = server
    repositories["me/bells"] = files_of(checkpoint)
    folder = hub.resolve("hf:me/bells")
    repositories.clear()
    seen.clear()
    assert hub.fetch_checkpoint(f"hf:me/bells@{folder.name}") == folder
    assert not [line for line in seen if "resolve" in line]


def test_a_name_that_is_no_repository_is_left_alone(tmp_path):
    assert hub.resolve("BEATs") == "BEATs" and hub.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:me/none", "no such repository"),
        ("hf:bells", "expected USER/NAME"),
        ("hf:me/empty", "holds no checkpoint of framekd: it has no spec.json"),
    ],
)
def test_a_repository_without_a_checkpoint_is_one_sentence(name, words, server):
    server[0]["me/empty"] = {"README.md": b"hello"}
    with pytest.raises(UserError, match=words) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)


def test_weights_that_were_changed_on_the_hub_are_refused(checkpoint, server):
    files = files_of(checkpoint)
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"?"
    server[0]["me/changed"] = files
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_checkpoint(hub.resolve("hf:me/changed"))


def test_a_refused_upload_is_one_sentence(checkpoint, server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    out = tmp_path / "tiny.pt"
    assert main(["export", "--model", str(checkpoint), "--format", "torch", "--out", str(out), "--push", "me/x"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "me/x" in said[-1] and "log in with `hf auth login`" in said[-1] and out.is_file()


def pushed(checkpoint: Path, out: Path) -> int:
    """Export a checkpoint as `out` and push both: the exit code."""
    words = ["export", "--model", str(checkpoint), "--format", "torch", "--out", str(out), "--push", "me/bells"]
    return main(words)


def test_large_files_go_by_lfs_and_come_back_with_their_sums(checkpoint, lfs, tmp_path):
    repositories, seen, storage = lfs
    out = tmp_path / "out" / "tiny.pt"
    assert pushed(checkpoint, out) == 0
    weights = {path.name: path.read_bytes() for path in (checkpoint / "model.safetensors", out)}
    files = repositories["me/bells"]
    for name, content in weights.items():
        oid = hashlib.sha256(content).hexdigest()
        assert files[name] == Large(oid, len(content)) and (storage / oid).read_bytes() == content
    assert {name for name, content in files.items() if isinstance(content, bytes)} >= {"README.md", "spec.json"}
    steps = ["preupload/main", "objects/batch", "/storage/", "lfs/verify", "commit/main"]
    places = [next(i for i, line in enumerate(seen) if step in line) for step in steps]
    assert places == sorted(places) and len([line for line in seen if line.startswith("PUT")]) == 2

    seen.clear()
    ours, theirs = load_checkpoint(checkpoint)[0], load_checkpoint(hub.resolve("hf:me/bells"))[0]
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    oid = hashlib.sha256(weights["model.safetensors"]).hexdigest()
    assert [line for line in seen if "/storage/" in line] == [f"GET /storage/{oid}"]  # without the token

    seen.clear()
    assert pushed(checkpoint, out) == 0 and f"PUT /storage/{oid}" not in seen  # it is there


def test_a_large_file_that_was_changed_in_the_storage_is_refused(checkpoint, lfs, tmp_path):
    repositories, _, storage = lfs
    assert pushed(checkpoint, tmp_path / "out" / "tiny.pt") == 0
    path = storage / repositories["me/bells"]["model.safetensors"].oid
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="SHA-256 differs"):
        load_checkpoint(hub.resolve("hf:me/bells"))


@pytest.mark.parametrize("fault", ["the storage is full", "no storage of this kind"])
def test_a_large_file_that_is_not_taken_is_one_sentence(fault, checkpoint, lfs, tmp_path, monkeypatch, capsys):
    repositories, _, storage = lfs
    if fault == "the storage is full":
        storage.rmdir()
    else:
        monkeypatch.delenv("HF_HUB_DISABLE_XET")
        forget()
    assert pushed(checkpoint, tmp_path / "out" / "tiny.pt") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("framekd: hf:me/bells: ") and repositories["me/bells"] == {}
    words = {"the storage is full": "a large file was not taken (", "no storage of this kind": "HF_HUB_DISABLE_XET=1"}
    assert words[fault] in said


def test_without_a_server_or_the_package_the_sentence_says_what_to_do(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    forget()
    with pytest.raises(UserError, match="cannot be reached"):
        hub.resolve("hf:me/bells")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'framekd\[hub\]'"):
        hub.resolve("hf:me/bells")
