"""Small real trainings that other processes can run: a teacher, a student and a weak run on synthetic 2-s clips."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from framekd.config import Recipe, UserError
from framekd.data import Arrays, Loader
from framekd.data.clips import labelled
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.train import Objective, RunOptions, fit, torch_generator

FRAMES, CLASSES, STEPS = 50, 6, 20
SIZES = {"width": 32, "depth": 2, "heads": 2, "rnn_hidden": 16}
AUGMENT = dict(wavmix=0.8, frame_shift=0.125, mixup=0.3, mixstyle=0.3, filter=0.8, freq_warp=0.8)


class Soft:
    """An ensemble's soft labels, as a function of the clip."""

    def rows(self, ids):
        draws = [np.random.default_rng(int(name[4:11])).random((CLASSES, FRAMES), np.float32) for name in ids]
        return np.stack(draws)


def clips(n=24, *, weak=False, seconds=2.0):
    """Noise in which each class is a tone, present for half a second at a time."""
    rng = np.random.default_rng(0)
    classes = ClassList.of([f"tone {c}" for c in range(CLASSES)])
    ids, audio, events = [], [], {}
    time_ = np.arange(int(16_000 * seconds)) / 16_000
    for i in range(n):
        name, wave = f"clip{i:07d}_0", rng.standard_normal(len(time_)) * 300
        events[name] = []
        for c in rng.choice(CLASSES, 2, replace=False).tolist():
            onset = round(float(rng.uniform(0, seconds - 0.6)), 2)
            here = (time_ >= onset) & (time_ < onset + 0.5)
            wave[here] += 6000 * np.sin(2 * np.pi * 300 * 1.6**c * time_[here])
            events[name].append((onset, onset + 0.5, classes.names[c]))
        ids.append(name)
        audio.append(wave.astype(np.int16))
    if weak:
        marks = {name: sorted({c for _, _, c in found}) for name, found in events.items()}
        return labelled(ids, Arrays(audio), classes, clip_labels=marks)
    return labelled(ids, Arrays(audio), classes, events=events)


RUNS = {
    "teacher": dict(model="tiny", sequence="bigru", sampler="balanced", augment=AUGMENT, optimiser="adam"),
    "student": dict(model="tiny", augment=dict(mixup=0.5, wavmix=0.5), distillation_weight=0.9),
    "averaged": dict(model="tiny", sequence="bigru", augment=dict(mixup=0.5), ema=0.9),
    "sgd": dict(model="tiny", optimiser="sgd", weight_decay=1e-3, clip_gradient=1.0, augment=dict(mixup=0.5)),
    "bf16": dict(model="tiny", half=torch.bfloat16, augment=dict(mixup=0.5)),
    "fp16": dict(model="tiny", half=torch.float16, clip_gradient=1.0, augment=dict(mixup=0.5)),
    # BEATs has dropout and layerdrop; its weak recipe has the other optimiser and the other objective.
    "weak": dict(model="BEATs", weak=True, optimiser="adamw", weight_decay=1e-2, augment=dict(mixup=1.0, wavmix=0.5)),
}


def how_and_what(values):
    """Keyword arguments of `fit` from a mixture of them and the fields of RunOptions."""
    names = {one.name for one in fields(RunOptions)}
    how = {name: value for name, value in values.items() if name in names}
    what = {name: value for name, value in values.items() if name not in names}
    return {**what, "options": RunOptions(**{"progress": False, **how})}


def die_in_save(count):
    """Have the process killed in the middle of writing its `count`-th state."""
    calls = []

    def half(tensors, path, metadata):
        calls.append(path)
        save_file(tensors, path, metadata)
        if len(calls) == count:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    import framekd.train.state as state

    state.save_file = half


def run(kind, directory, *, die_at=None, dies_in_save=None, save_steps=3, **options):
    """Train run `kind` into `directory` and write its weights.

    ``die_at=(step, part of the step)`` kills it there, ``dies_in_save=n`` while it writes its n-th state.
    """
    torch.set_num_threads(1)
    if dies_in_save:
        die_in_save(dies_in_save)
    values = dict(RUNS[kind])
    name, sequence, weak = values.pop("model"), values.pop("sequence", None), values.pop("weak", False)
    half = values.pop("half", None)
    if half:  # as a GPU does it: half precision, and fp16 with its scaler
        import framekd.train.step as step_of

        step_of.half_precision = lambda recipe, device: half
    recipe = Recipe(epochs=2, epoch_clips=40, batch_size=4, warmup_steps=4, **values)
    assert recipe.steps() == STEPS
    model = build_model(name, n_classes=CLASSES, sequence_model=sequence, sizes=SIZES).init_weights(torch_generator(7))
    soft = Soft() if recipe.distillation_weight else None
    loader = Loader(clips(weak=weak), recipe, seed=5, n_frames=FRAMES, soft=soft)
    marks = []

    def clock(part):
        marks.append(part)
        if die_at is not None and (marks.count("data") - 1, part) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    result = fit(
        model,
        loader,
        recipe,
        lr=1e-3,
        seed=11,
        objective=Objective("weak" if weak else "strong", recipe.distillation_weight),
        directory=directory,
        finish=lambda _: save_file(model.state_dict(), Path(directory) / "model.safetensors"),
        **how_and_what({"save_steps": save_steps, "clock": clock, **options}),
    )
    return result, marks.count("data")


def slow_run(kind, directory, *, pause=0.05):
    """The same with pauses, for a signal to fall into."""
    run(kind, directory, save_steps=10_000, validation=None, identity={"slow": True}, **_paused(pause))


def _paused(pause):
    def forward(model, mel, generator):
        time.sleep(pause)
        return model(mel, generator=generator)

    return {"forward": forward}


context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["training_runs", "framekd.train", "framekd.soft_labels"])


def start(function, *args, **kwargs):
    """A process of its own that has torch imported already."""
    process = context.Process(target=function, args=args, kwargs=kwargs)
    process.start()
    return process


def together(directory, batch_size, recipes):
    """One of the processes that train together: losses and clip ids of 20 steps per recipe, written by each."""
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for name, values in recipes.items():
        recipe = Recipe(epochs=2, epoch_clips=10 * batch_size - 3, batch_size=batch_size, warmup_steps=4, **values)
        model = build_model("tiny", n_classes=CLASSES, sizes=SIZES).init_weights(torch_generator(7))
        watched = Watched(Loader(clips(), recipe, seed=5, n_frames=FRAMES, soft=Soft()))
        folder = Path(directory) / name

        def finish(_, folder=folder):
            with (folder / "finished").open("a") as file:
                file.write(f"rank {rank}\n")

        goal = Objective("strong", recipe.distillation_weight)
        about = how_and_what({"finish": finish})
        result = fit(model, watched, recipe, lr=1e-3, seed=11, objective=goal, directory=folder, **about)
        report = {
            "history": result.history,
            "seen": watched.seen,
            "rows": watched.rows,
            "weight": model.frame_head.weight.tolist(),
        }
        (folder / f"rank{rank}.json").write_text(json.dumps(report))


def fail_in_one(how):
    """Two processes that train together: the second finds a mistake, or crashes, and the first waits for it."""
    if torch.distributed.get_rank() == 1:
        raise ZeroDivisionError if how == "crash" else UserError("the file x is not there")
    torch.distributed.barrier()


class Watched:
    """A loader that remembers which clips it gave."""

    def __init__(self, loader):
        self.loader, self.seen, self.rows, self.steps = loader, [], [], loader.steps

    def batches(self, begin, stop, **where):
        for batch in self.loader.batches(begin, stop, **where):
            self.seen.append(batch.ids)
            self.rows.append(len(batch.waveform))
            yield batch


def random_deaths(count, *, seed):
    """Steps of one run and parts of the step to die in."""
    draw = random.Random(seed)
    parts = ["data", "frontend", "augment", "forward", "backward", "optimiser", "log"]
    return [(draw.randrange(0, 2), draw.choice(parts)) for _ in range(count)]
