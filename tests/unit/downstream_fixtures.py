"""Fixtures of the downstream tasks' tests: a plugin of pytest."""

from __future__ import annotations

import pytest
import torch
from downstream_sets import write_desed, write_hear

from framekd.checkpoints import save_checkpoint
from framekd.models import build_model


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_desed(root / "desed")
    write_hear(root / "dcase", {"train": 3, "valid": 1, "test": 2})
    write_hear(root / "maestro", {f"fold0{f}": 1 for f in range(5)})
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model("tiny", n_classes=7).init_weights(torch.Generator().manual_seed(3))
    save_checkpoint(folder, model, classes=list("abcdefg"), provenance={})
    return folder
