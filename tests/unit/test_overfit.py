"""Each architecture, small, learns eight clips by heart: PSDS1 above 0.9 on what it was trained on."""

import pytest
import torch
from training_runs import CLASSES, clips

from framekd.config import Recipe
from framekd.data import Loader, chunks
from framekd.metrics import psds1
from framekd.models import build_model
from framekd.predict import logits
from framekd.train import fit, torch_generator

SECONDS = 2.0
FRAMES = int(25 * SECONDS)
STEPS = {"ATST-F": 150, "BEATs": 150, "fPaSST": 90, "M2D": 90, "ASiT": 220}


@pytest.fixture
def one_thread():
    """Threads that wait for each other cost small models more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_eight_clips_are_learnt_by_heart(name, tmp_path, one_thread):
    data = clips(8, seconds=SECONDS)
    model = build_model(name, n_classes=CLASSES, sizes={"width": 64, "depth": 2, "heads": 4})
    model.init_weights(torch_generator(1))
    recipe = Recipe(epochs=1, epoch_clips=8 * STEPS[name], batch_size=8, warmup_steps=5)
    loader = Loader(data, recipe, seed=0, n_frames=FRAMES)
    before = score(model, data)
    fit(model, loader, recipe, lr=3e-3, seed=0, directory=tmp_path, progress=False)
    assert before < 0.2 and score(model, data) > 0.9


def score(model, data):
    """PSDS1 on `data`, unfiltered."""
    (batch,) = chunks(data, 8, n_frames=FRAMES)
    found = logits(model.eval(), batch.waveform)[0].sigmoid().transpose(1, 2)
    durations = dict.fromkeys(data.ids, SECONDS)
    times = (torch.arange(FRAMES + 1) / 25).numpy()
    tables = dict(zip(data.ids, found.numpy()))
    return psds1(tables, data.ground_truth(), durations, list(data.classes.names), timestamps=times).value
