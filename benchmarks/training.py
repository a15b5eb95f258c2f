"""How a training step divides, and how fast augmentation is; ours, and beside it the authors' code.

    python benchmarks/training.py                                  (small models, a minute)
    python benchmarks/training.py --peer PATH_OF_A_CHECKOUT        (fschmid56/PretrainedSED; its packages importable)
    python benchmarks/training.py --paper --batch 2 --steps 3      (the paper's sizes on a CPU)
    python benchmarks/training.py --only hours --share 0.35        (GPU hours of both tables, from FLOPs; with --peer
                                                                    the authors' too, by the ratio of steps on this CPU)
    python benchmarks/training.py --only memory                    (of a GPU, counted without one; the paper's recipes)
    python benchmarks/training.py --paper --device cuda --batch 256 --steps 50 --models BEATs ASiT

The step is the real one: `framekd.train.fit` with the teacher's recipe, timed by its own clock. Ours and the peer's are
run in turn in one process, and what counts are ratios of neighbouring runs.
"""

import argparse
import importlib
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from framekd.augment import augment
from framekd.config import MODELS, SIZES, Augment, Config, HeadRecipe, Recipe, Task
from framekd.data import Arrays, Loader
from framekd.data.clips import labelled
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.train import Objective, RunOptions, fit, torch_generator
from framekd.train.footprint import survey

TEACHER = dict(wavmix=1.0, frame_shift=0.125, mixup=0.3, mixstyle=0.3, filter=0.8, freq_warp=0.8)
SMALL = {"width": 96, "depth": 2, "heads": 4, "rnn_hidden": 48}
MELS = {"ATST-F": (64, 1001), "BEATs": (128, 998), "fPaSST": (128, 1000), "M2D": (80, 1001), "ASiT": (128, 998)}
TOKENS = {"ATST-F": 250, "BEATs": 496, "fPaSST": 252, "M2D": 311, "ASiT": 497}
PEAK = 989e12  # dense bf16 FLOP a second of an H100 or H200
STAGES = ("teachers", "students", "Li et al.", "Step 2", "Table II")
PARTS = ("data", "frontend", "augment", "forward", "backward", "optimiser", "log")


@dataclass(frozen=True)
class Labels:
    """What the augmentation moves beside the spectrograms."""

    frame_labels: torch.Tensor
    clip_labels: torch.Tensor | None
    soft_labels: torch.Tensor


def synchronise() -> None:
    """Wait for the GPU, if there is one in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def noise(count: int, classes: int):
    """Clips of noise with random events: what is in them does not change how long they take."""
    rng = np.random.default_rng(0)
    names = ClassList.of([f"class {i:03d}" for i in range(classes)])
    ids = [f"clip{i:07d}_0" for i in range(count)]
    audio = Arrays([(rng.standard_normal(160_000) * 3000).astype(np.int16) for _ in ids])
    events = {i: [(a, a + 1.0, names.names[rng.integers(classes)]) for a in rng.uniform(0, 9, 5).tolist()] for i in ids}
    return labelled(ids, audio, names, events=events)


# ------------------------------------------------------------------------------------------------------ augmentation


def peer_augment(theirs, mel: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor, config: Augment, warp) -> None:
    """The augmentation part of the authors' training step, with their own functions."""
    if config.frame_shift > 0:
        mel, labels, soft = theirs.frame_shift(mel, labels, pseudo_labels=soft, shift_range=config.frame_shift)
    if config.mixup > random.random():
        mel, labels, soft = theirs.mixup(mel, targets=labels, pseudo_strong=soft)
    if config.mixstyle > random.random():
        mel = theirs.mixstyle(mel)
    if config.filter > random.random():
        mel, _ = theirs.filter_augmentation(mel)
    if config.freq_warp > random.random():
        warp(mel.squeeze(1))


def time_augmentation(theirs, *, batch: int, device: str, repeat: int) -> None:
    """Milliseconds per batch of each operation alone and of the teacher's whole chain."""
    print(f"\naugmentation of {batch} clips with 447 classes on {device}, ms per batch")
    print(f"{'':14s}{'operation':14s}{'ours':>10s}" + (f"{'theirs':>10s}{'ratio':>8s}" if theirs else ""))
    most = {name: 0.125 if name == "frame_shift" else 1.0 for name in TEACHER if name != "wavmix"}
    chains = {name: Augment.model_validate({name: value}) for name, value in most.items()}
    chains["all"] = Augment.model_validate(most)
    rng = np.random.default_rng(0)
    for model in ("BEATs",):  # 128 bins, as three of the five
        mel = torch.randn(batch, 1, *MELS[model], device=device)
        labels = (torch.rand(batch, 447, 250, device=device) < 0.02).float()
        soft = torch.rand(batch, 447, 250, device=device)
        for name, config in chains.items():
            mine, other = [], []
            for _ in range(repeat):
                mine.append(timed(augment, mel, Labels(labels, None, soft), config, generator=rng))
                if theirs:
                    warp = theirs.RandomResizeCrop((1, 1.0), time_scale=(1.0, 1.0))
                    copies = mel.clone(), labels.double(), soft.double()
                    other.append(timed(peer_augment, theirs, *copies, config, warp))
            line = f"{model:14s}{name:14s}{1e3 * statistics.median(mine):10.2f}"
            if theirs:
                ratio = statistics.median(b / a for a, b in zip(mine, other))
                line += f"{1e3 * statistics.median(other):10.2f}{ratio:8.1f}"
            print(line, flush=True)


def timed(call, *arguments, **options) -> float:
    """Seconds of a call, all work on the GPU included."""
    synchronise()
    begun = time.perf_counter()
    call(*arguments, **options)
    synchronise()
    return time.perf_counter() - begun


# -------------------------------------------------------------------------------------------------------------- steps


def our_step(name: str, clips, recipe: Recipe, options) -> dict[str, float]:
    """Seconds per part of a step of `fit`, the median over its steps."""
    model = build_model(name, n_classes=options.classes, sequence_model=options.sequence_model, sizes=options.sizes)
    model.init_weights(torch_generator(0))
    begun, parts = [0.0], defaultdict(list)

    def clock(part: str) -> None:
        synchronise()
        now = time.perf_counter()
        parts[part].append(now - begun[0])
        begun[0] = now

    with tempfile.TemporaryDirectory() as folder:
        how = RunOptions(device=options.device, progress=False, clock=clock)
        fit(model, Loader(clips, recipe, seed=0), recipe, lr=1e-4, seed=0, directory=folder,
            objective=Objective("strong"), options=how)  # fmt: skip
    # The first step pays for first uses, and its "data" for all that came before it.
    return {part: statistics.median(parts[part][1:]) for part in PARTS if len(parts[part]) > 1}


def their_step(peer, clips, recipe: Recipe, options) -> float:
    """Seconds per step of the authors' loop without its data: front end to optimiser, the median over steps."""
    theirs = importlib.import_module("helpers.augment")
    half = options.device == "cuda"
    model = peer.model.to(options.device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(options.device, enabled=half)
    loss = torch.nn.BCEWithLogitsLoss()
    warp, seconds = theirs.RandomResizeCrop((1, 1.0), time_scale=(1.0, 1.0)), []
    for batch in Loader(clips, recipe, seed=0).batches(0, recipe.steps()):
        batch = batch.to(options.device)
        assert batch.frame_labels is not None
        labels = batch.frame_labels.double()
        soft = torch.zeros_like(labels)

        def step(batch=batch, labels=labels, soft=soft) -> None:
            with torch.autocast(options.device, torch.float16, enabled=half):
                mel = model.mel_forward(batch.waveform)
                peer_augment(theirs, mel, labels, soft, recipe.augment, warp)
                frames, _ = model(mel)
                value = loss(frames.float(), labels[:, : frames.shape[1]].float())
            optimiser.zero_grad()
            scaler.scale(value).backward()
            scaler.step(optimiser)
            scaler.update()

        seconds.append(timed(step))
    return statistics.median(seconds[1:])


def time_steps(options) -> None:
    """A line per model: the step in parts, what lies outside forward and backward, clips a second."""
    clips = noise(max(2 * options.batch, 16), options.classes)
    recipe = Recipe(
        epochs=1, epoch_clips=options.batch * (options.steps + 1), batch_size=options.batch, warmup_steps=1,
        sampler="balanced", augment=Augment.model_validate(TEACHER), compile=options.compile,
    )  # fmt: skip
    print(f"\na teacher's step, batch {options.batch}, {options.device}, {torch.get_num_threads()} threads; ms")
    print(f"{'':8s}" + "".join(f"{part:>11s}" for part in PARTS) + f"{'outside':>10s}{'clips/s':>9s}", end="")
    print(f"{'theirs/ours':>13s}" if options.peer and options.paper else "")
    for name in options.models:
        parts = our_step(name, clips, recipe, options)
        total = sum(parts.values())
        outside = 1 - (parts["forward"] + parts["backward"]) / total
        line = f"{name:8s}" + "".join(f"{1e3 * parts.get(part, 0):11.2f}" for part in PARTS)
        line += f"{100 * outside:9.1f}%{options.batch / total:9.1f}"
        if options.peer and options.paper:
            models = importlib.import_module("models_benchmark")
            line += f"{their_step(models.Peer(name, options.sequence_model), clips, recipe, options) / total:13.2f}"
        print(line, flush=True)


# -------------------------------------------------------------------------------------------------------- whole tables


def flops_per_clip(name: str, sequence_model: str | None) -> float:
    """FLOPs of one 10-s clip's forward pass at the paper's size: blocks, attention, GRU (a stem is 1 to 5 % more)."""
    sizes, tokens = SIZES[name], TOKENS[name]
    width, hidden = sizes["width"], sizes["rnn_hidden"]
    block = tokens * (4 * width**2 + 2 * width * sizes["mlp"]) + 2 * tokens**2 * width
    total = sizes["depth"] * block
    if sequence_model:
        inputs = 5 * width if name == "M2D" else width
        total += 250 * 2 * 3 * hidden * (inputs + hidden + 2 * hidden + hidden)  # frames, directions, gates
    return 2.0 * total


def work_of(name: str, config: Config) -> dict[str, float]:
    """Forward FLOPs of all trainings of one model, by what Table I and Table II need them for."""
    plain, rnn = (flops_per_clip(name, kind) for kind in (None, "bigru"))
    work = dict.fromkeys(STAGES, 0.0)
    teachers = {config.teachers_of(setting) for setting in config.settings} - {None}
    for setting in config.settings:
        resolved, runs = config.setting(setting), len(config.seeds)
        if setting in teachers and resolved.teacher is not None:
            flops = rnn if resolved.teacher.sequence_model else plain
            work["teachers"] += runs * clips_of(resolved.teacher.recipe) * flops
        if resolved.student is not None:
            row = "Li et al." if setting == "li_et_al" else "students"
            work[row] += runs * clips_of(resolved.student.recipe) * plain
    if name in config.step2.train:
        work["Step 2"] = clips_of(config.step2.recipe) * plain
    for task, folds in (("DESED", 0), ("DC16_T2", 0), ("MAESTRO", 5)):
        block = getattr(config.downstream, task)
        trainings = len(config.downstream.checkpoints) * trainings_of(block, folds)
        work["Table II"] += trainings * clips_of(block.finetune) * plain  # frozen ones run once over the clips
    return work


def estimate_hours(options) -> None:
    """GPU hours of both tables from the models' FLOPs and an assumed share of a GPU's peak; nothing is measured on one.

    With --peer, the authors' hours are ours times the ratio of steps on this CPU, at the paper's sizes.
    """
    config, whole = Config(), np.zeros(2)
    share = f"{100 * options.share:.0f} % of its bf16 peak"
    print(f"\nhours of one H100 or H200 at {share}; estimated from FLOPs, not measured on a GPU")
    heads = ["GFLOP/clip", "with GRU", *STAGES, "sum", *(["CPU ratio", "theirs"] if options.peer else [])]
    print(f"{'':8s}" + "".join(f"{text:>11s}" for text in heads))
    for name in options.models:
        plain, rnn = (flops_per_clip(name, kind) / 1e9 for kind in (None, "bigru"))
        hours = [3 * flops / (options.share * PEAK) / 3600 for flops in work_of(name, config).values()]
        line = f"{name:8s}{plain:11.0f}{rnn:11.0f}" + "".join(f"{value:11.1f}" for value in [*hours, sum(hours)])
        ratio = step_ratio(name, options) if options.peer else 1.0
        whole += sum(hours) * np.array([1.0, ratio])
        print(line + (f"{ratio:11.2f}{ratio * sum(hours):11.1f}" if options.peer else ""), flush=True)
    theirs = f", the authors' code {whole[1]:.0f} by these ratios" if options.peer else ""
    print(f"all models: {whole[0]:.0f} hours{theirs} (backward as twice the forward pass; no data, no validation)")


def step_ratio(name: str, options) -> float:
    """Time of the authors' step over ours: students on this machine, the teacher's augmentation on both sides."""
    clips = noise(16, options.classes)
    recipe = Recipe(epochs=1, epoch_clips=options.batch * (options.steps + 1), batch_size=options.batch,
                    warmup_steps=1, augment=Augment.model_validate(TEACHER))  # fmt: skip
    peer = importlib.import_module("models_benchmark").Peer(name, options.sequence_model)
    return their_step(peer, clips, recipe, options) / sum(our_step(name, clips, recipe, options).values())


def clips_of(recipe: HeadRecipe) -> int:
    """Clips that one training sees."""
    return recipe.epochs * recipe.epoch_clips


def trainings_of(block: Task, folds: int) -> float:
    """Fine-tuning trainings of one model from one checkpoint: a search tries its rates with one seed, or each fold."""
    runs, grid, epochs = folds or len(block.seeds), len(block.search.finetune), block.finetune.epochs
    if not block.finetune.searches():
        return runs
    left, tried, done = grid, 0.0, 0
    for epoch in block.search.rounds(epochs):
        if left > 1:
            tried, done, left = tried + left * (epoch - done) / epochs, epoch, -(-left // 2)
    tried += left * (epochs - done) / epochs
    return runs * tried if folds else tried + runs - 1


def load_peer(path: str) -> None:
    """Make the authors' checkout, and our benchmark of models that knows how to build theirs, importable."""
    here = str(Path(__file__).resolve().parent)  # it holds models.py, which is called as the peer's package is
    sys.path[:] = [str(Path(path).resolve()), *(p for p in sys.path if p != here)]
    spec = importlib.util.spec_from_file_location("models_benchmark", Path(__file__).with_name("models.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["models_benchmark"] = module
    spec.loader.exec_module(module)


def count_memory() -> None:
    """The table of docs/performance.md: GiB of each training of the paper on a GPU."""
    print("| model | stage | kept | batches | step | peak |\n|---|---|---|---|---|---|", flush=True)
    for name, stage, _, found, _ in survey(Config()):
        sizes = " | ".join(f"{size / 2**30:.1f}" for size in (found.kept, found.batches, found.step, found.peak))
        print(f"| {name} | {stage} | {sizes} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of the authors' code")
    parser.add_argument("--paper", action="store_true", help="the paper's sizes instead of small models")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sequence-model", default=None, choices=["bigru"])
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--augment-batch", type=int, default=256)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", choices=["augmentation", "steps", "hours", "memory"])
    parser.add_argument("--share", type=float, default=0.35, help="assumed share of a GPU's peak, for hours")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.sizes = None if options.paper else SMALL
    options.classes = 447 if options.paper else 40
    theirs = None
    if options.peer:
        load_peer(options.peer)
        theirs = importlib.import_module("helpers.augment")
    if options.only in (None, "augmentation"):
        time_augmentation(theirs, batch=options.augment_batch, device=options.device, repeat=2)
    if options.only in (None, "steps"):
        time_steps(options)
    if options.only == "hours":
        options.sizes, options.classes = None, 447
        estimate_hours(options)
    if options.only == "memory":
        count_memory()


if __name__ == "__main__":
    main()
