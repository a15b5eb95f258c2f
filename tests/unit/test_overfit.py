"""Each architecture, small, learns eight clips by heart: PSDS1 above 0.9 on its training clips."""

import pytest
import torch
from training_runs import CLASSES, clips

from framekd.config import TrainRecipe
from framekd.data import Loader, chunks
from framekd.inference import batch_logits
from framekd.metrics import psds1
from framekd.models import build_model
from framekd.train import Objective, RunOptions, fit, torch_generator
from framekd.units import FRAME_RATE, FRAME_SECONDS

SECONDS = 2.0
FRAMES = int(FRAME_RATE * SECONDS)
STEPS = {"ATST-F": 150, "BEATs": 150, "fPaSST": 90, "M2D": 90, "ASiT": 220}


@pytest.fixture
def one_thread():
    """Small models are faster with one thread."""
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
    recipe = TrainRecipe(epochs=1, epoch_clips=8 * STEPS[name], batch_size=8, warmup_steps=5)
    loader = Loader(data, recipe, seed=0, n_frames=FRAMES)
    before = score(model, data)
    options = RunOptions(device="cpu", progress=False)
    fit(model, loader, recipe, lr=3e-3, seed=0, objective=Objective("strong"), directory=tmp_path, options=options)
    assert before < 0.2 and score(model, data) > 0.9


def score(model, data):
    """PSDS1 on `data`, unfiltered."""
    batches = chunks(data, 8, n_frames=FRAMES)
    [(_, [(frames, _)])] = batch_logits([model], batches, device=torch.device("cpu"))
    times = (torch.arange(FRAMES + 1) * FRAME_SECONDS).double().numpy()
    tables = dict(zip(data.ids, frames.sigmoid().transpose(1, 2).numpy()))
    durations = dict.fromkeys(data.ids, SECONDS)
    return psds1(tables, data.ground_truth(), durations, list(data.classes.names), timestamps=times).value
