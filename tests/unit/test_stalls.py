"""A training step never waits for the device: it runs on tensors without values, which cannot be read back.

On the device `meta`, `.item()`, `.cpu()`, `.tolist()`, `nonzero` and masks as indices raise an error, and what the host
copies to the device goes on. So a step that runs there reads nothing back.
"""

import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from training_runs import AUGMENT, CLASSES, FRAMES, SIZES, Soft, clips

from framekd.clip_soft_labels import ClipSoftLabels
from framekd.config import Recipe
from framekd.data import Loader, MixedLoader
from framekd.models import build_model
from framekd.train import Objective, torch_generator
from framekd.train.parallel import World
from framekd.train.step import Step

META = torch.device("meta")


@pytest.fixture(autouse=True)
def only_on_meta(monkeypatch):
    """What `meta` lacks: fused optimisers (on a GPU they read nothing back either), and autocast."""

    def build(model, recipe, *, lr, depth_groups=None):
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimiser = kinds[recipe.optimiser](model.parameters(), lr=lr)
        optimiser.param_groups[0]["peak"] = lr
        return optimiser

    monkeypatch.setattr("framekd.train.step.build_optimiser", build)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def step_on(device, loader, recipe, objective, name="tiny", **rest):
    model = build_model(name, n_classes=CLASSES, sizes=SIZES, **rest).init_weights(torch_generator(7))
    more = {"lr": 1e-3, "seed": 1, "total": 10, "world": World(), "clock": lambda part: None}
    step = Step(model.to(device).train(), recipe, objective, None, **more)
    for number, batch in enumerate(loader.batches(0, 2, device=device, rows=World().rows)):
        loss, _ = step(number, batch)
        assert loss.device.type == device.type and batch.waveform.device.type == device.type


@pytest.mark.parametrize(
    ("name", "optimiser"), [("tiny", "adamw"), ("BEATs", "adam"), ("fPaSST", "adam"), ("M2D", "adam"), ("ASiT", "adam")]
)
def test_a_students_step_reads_nothing_back(name, optimiser):
    more = dict(optimiser=optimiser, distillation_weight=0.9, accumulate=2, clip_gradient=1.0, ema=0.9)
    augment = {**AUGMENT, "mixup": 1.0, "mixstyle": 1.0}
    recipe = Recipe(epochs=1, epoch_clips=8, batch_size=4, warmup_steps=1, augment=augment, **more)
    loader = Loader(clips(8), recipe, seed=5, n_frames=FRAMES, soft=Soft())
    step_on(META, loader, recipe, Objective("strong", 0.9), name)


def test_a_teachers_step_and_one_of_strong_and_weak_clips_read_nothing_back():
    recipe = Recipe(epochs=1, epoch_clips=8, batch_size=4, warmup_steps=1, augment=dict(wavmix=0.5, mixup=1.0))
    loaders = [Loader(clips(8, weak=weak), recipe, seed=5, n_frames=FRAMES) for weak in (False, True)]
    step_on(META, MixedLoader(loaders), recipe, Objective("both"))
    step_on(META, loaders[0], recipe, Objective("strong"), sequence_model="bigru")


def test_a_step_of_step_2_reads_nothing_back(tmp_path):
    data = clips(8, weak=True)
    np.save(tmp_path / "logits.npy", np.zeros((6, CLASSES), np.float32))  # two clips have no soft labels
    (tmp_path / "index.pkl").write_bytes(pickle.dumps({name[:11]: i for i, name in enumerate(data.ids[:6])}))
    soft = ClipSoftLabels(tmp_path / "logits.npy", data.ids, data.classes, index=tmp_path / "index.pkl")
    recipe = Recipe(epochs=1, epoch_clips=8, batch_size=4, warmup_steps=1, distillation_weight=0.9,
                    augment=dict(wavmix=0.5, mixup=1.0))  # fmt: skip
    step_on(META, Loader(data, recipe, seed=5, n_frames=FRAMES, soft=soft), recipe, Objective("weak", 0.9))


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.tolist, bool, lambda x: x[x > 0]])
def test_a_step_that_reads_a_value_is_found(read):
    recipe = Recipe(epochs=1, epoch_clips=8, batch_size=4, warmup_steps=1)

    class Reads(Objective):
        def __call__(self, frames, clips, batch, rows):
            read(frames if read in (torch.Tensor.cpu, torch.Tensor.tolist) else frames.mean())
            return super().__call__(frames, clips, batch, rows)

    with pytest.raises((RuntimeError, NotImplementedError)):
        step_on(META, Loader(clips(8), recipe, seed=5, n_frames=FRAMES), recipe, Reads("strong"))
