"""The demo's Step 1 checkpoints: their sums, the server that publishes them, and the tool that trains them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loaded_tool import load_tool

from framekd import checkpoints
from framekd.config import load_files
from framekd.config.stages import MODELS
from framekd.files import sha256_of
from framekd.jobs import CheckpointJob
from framekd.miniature.scenes import load_library
from framekd.pipeline.checkpoints import make_checkpoints

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "miniature" / "checkpoints"
CONFIG = load_files(ROOT / "config" / "demo.yaml")


@pytest.fixture(scope="module")
def tool():
    return load_tool("miniature_checkpoints")


def test_the_configuration_names_every_file_with_its_sum():
    assert CONFIG.step1.source == "external"
    for model in MODELS:
        published = CONFIG.step1.external[model]
        assert sha256_of(FOLDER / published.url.rsplit("/", 1)[-1]) == published.sha256
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_is_fetched_from_the_local_server_and_fits_the_model(model, tmp_path):
    published = CONFIG.step1.external[model]
    job = CheckpointJob(
        version=1,
        step="step1",
        models=[model],
        sizes={model: CONFIG.model_sizes(model)},
        front_ends={model: CONFIG.front_ends.of(model)},
        published={model: published},
        seed=None,
        downloads=str(tmp_path / "downloads"),
        served=str(FOLDER),
    )
    make_checkpoints(job, weights=[str(tmp_path / "out" / "model.safetensors")])
    made, _ = checkpoints.load_checkpoint(tmp_path / "out")
    theirs = checkpoints.read_weights(tmp_path / "downloads" / published.url.rsplit("/", 1)[-1])
    largest = max((p for p in made.encoder.parameters() if p.requires_grad), key=lambda p: p.numel())
    assert any(torch.equal(largest, value) for value in theirs.values())


def test_step_1_hears_no_evaluated_class_and_no_evaluation_source(tool):
    library = load_library(ROOT / "miniature")
    seed = CONFIG.miniature.seed
    pool, split = tool.pool(seed), library.split(seed)
    real = {label for label in pool.events if not label.startswith("~")}
    assert real == set(library.classes) - set(library.evaluated)
    sources = {(label, recording.source) for label in real for recording in pool.events[label]}
    assert not sources & split["eval"].sources() and sources < split["weak"].sources()
    assert {r.name for r in pool.backgrounds} == {r.name for r in split["weak"].backgrounds}


def test_synthetic_sounds_are_finite_and_differ(tool):
    for kind in tool.SOUNDS:
        first, second = (tool.synthetic(kind, np.random.default_rng(seed)) for seed in (1, 2))
        assert np.isfinite(first).all() and np.abs(first).max() == pytest.approx(0.7)
        assert len(first) != len(second) or not np.array_equal(first, second)


def test_training_is_deterministic(tool):
    waves, labels = tool.scenes(tool.pool(0), 20, 0)
    assert labels.shape == (20, 8 + len(tool.SOUNDS), 250) and labels.any(2).any(0).all()
    first, second = (tool.pretrain("ATST-F", waves, labels, seed=0, steps=3) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
