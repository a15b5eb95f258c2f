"""`framekd verify` finds a flipped bit in anything that is kept, and names the file."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from framekd.checkpoints import save_checkpoint
from framekd.cli import main
from framekd.files import sha256_of
from framekd.manifest import Entry, State, write_manifest
from framekd.models import build_model
from framekd.store import Shard, StoredClip, write_shard


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A small run: shards with a manifest, a checkpoint, an ensemble, a table, a record, a fetched file."""
    root = tmp_path_factory.mktemp("run") / "results"
    for encoding in ("pcm", "flac"):
        path = root / "data/store" / encoding / "0000.h5"
        path.parent.mkdir(parents=True)
        waves = [np.arange(4000, dtype=np.int16) * (i + 1) for i in range(2)]
        write_shard(path, [StoredClip(f"{c * 11}_0", 0, w) for c, w in zip("ab", waves)], encoding=encoding)
        shard = Shard(path)
        entries = [
            Entry(n, ("strong_train",), State.OK, "", 0.25, s.tobytes().hex()) for n, s in zip(shard.ids, shard.sha256)
        ]
        write_manifest(path.with_suffix(".manifest.tsv"), entries)
    model = build_model("tiny", n_classes=2).init_weights(torch.Generator().manual_seed(0))
    save_checkpoint(root / "students/x/tiny/seed1", model, classes=["a", "b"], provenance={})
    (root / "ensembles").mkdir()
    with h5py.File(root / "ensembles/x.h5", "w") as file:
        file["filenames"], file["strong_logits"] = [b"a", b"b"], np.ones((2, 2, 250), np.float16)
    (root / "logs").mkdir()
    (root / "logs/table1.json").write_text(json.dumps({"rule": "table1", "seconds": 3.5}))
    (root / "logs/table1.log").write_text("a log grows")
    (root / "table1.csv").write_text("setting,model,mean\nproposed,tiny,1.5\n")
    (root / "fetched.pt").write_bytes(bytes(100))
    (root / "fetched.pt.sha256").write_text(f"{sha256_of(root / 'fetched.pt')}  fetched.pt\n")
    return root


@pytest.fixture
def run(template, tmp_path) -> Path:
    import shutil

    shutil.copytree(template, tmp_path / "results")
    return tmp_path / "results"


def flip(path: Path, place: int) -> None:
    """Flip a bit as a failing disk does: size and times stay."""
    about = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


FILES = [
    "data/store/pcm/0000.h5", "data/store/flac/0000.h5", "data/store/pcm/0000.manifest.tsv",
    "students/x/tiny/seed1/model.safetensors", "students/x/tiny/seed1/spec.json", "ensembles/x.h5",
    "logs/table1.json", "table1.csv", "fetched.pt",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_its_file_named_and_no_other(run, name, capsys):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.endswith("11 files checked, all whole\n")
    size = (run / name).stat().st_size
    for place in (size // 3, size - 2):
        flip(run / name, place)
        assert main(["verify", str(run)]) == 1
        *bad, end = capsys.readouterr().out.splitlines()
        assert end.endswith("damaged") and bad and all(line.startswith("- ") for line in bad)
        stem = (run / name).as_posix().removesuffix(".manifest.tsv").removesuffix(".h5")
        folder = str(run / "students/x/tiny/seed1") if "seed1" in name else stem
        assert all(folder in line for line in bad), bad
        flip(run / name, place)
        assert main(["verify", str(run)]) == 0
        capsys.readouterr()


@pytest.mark.parametrize(
    "name",
    ["data/store/pcm/0000.h5", "data/store/flac/0000.h5", "students/x/tiny/seed1/model.safetensors", "fetched.pt"],
)
def test_what_has_its_own_sum_is_checked_the_first_time_too(run, name, capsys):
    flip(run / name, (run / name).stat().st_size - 5)
    assert main(["verify", "--no-record", str(run)]) == 1
    assert name in capsys.readouterr().out and not (run / "sums.json").exists()


def test_a_file_that_was_made_again_is_recorded_anew_and_a_removed_one_is_forgotten(run, capsys):
    assert main(["verify", str(run)]) == 0
    (run / "table1.csv").write_text("setting,model,mean\nproposed,tiny,2.5\n")
    (run / "logs/table1.json").unlink()
    assert main(["verify", str(run)]) == 0
    assert set(json.loads((run / "sums.json").read_text())["files"]) >= {"table1.csv"}
    assert "logs/table1.json" not in json.loads((run / "sums.json").read_text())["files"]
    flip(run / "table1.csv", 5)
    assert main(["verify", str(run)]) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"a": 1}}'])
def test_a_damaged_list_of_sums_is_one_sentence(run, text, capsys):
    (run / "sums.json").write_text(text)
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr().err
    assert "sums.json is damaged; delete it" in said and said.count("\n") == 1
    assert main(["verify", str(run / "nowhere")]) == 1
