"""Table II: heads at many rates, scoring of MAESTRO, what a cell costs, and random crops beside a dense cache of crops.

    OMP_NUM_THREADS=1 python benchmarks/downstream.py [--only heads,scoring,cells,crops] [--demo FOLDER] [--json FILE]

* heads (the default): a grid of learning rates and seeds as one problem, beside one training per rate and seed, on the
  same random features. `--width`, `--classes`, `--clips`, `--epochs` and `--batch-size` are theirs.
* scoring: onset F-measures of MAESTRO's five folds at their real sizes, from probabilities to scores.
* cells: how many passes of the encoder and trainings a cell of Table II takes at the paper's sizes, counted, with
  sharing and without it; where `--demo` names the results of a demo, both ways are timed on a cell of the miniature.
* crops: scores of frozen heads with crops every 5 s and with random ones, on the miniature of `--demo`, by run.

Beside wall times stand the process's own CPU times, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from training import PEAK, clips_of, flops_per_clip, trainings_of

from framekd import tasks
from framekd.config import Config, HeadRecipe, Task, TaskSearch, load_files
from framekd.data import Arrays, clip_set
from framekd.labels import ClassList
from framekd.tasks import frozen, hear
from framekd.tasks.problem import Part, Problem, Run

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SEEDS = [1, 2, 3, 4]
TASKS = ("DESED", "DC16-T2", "MAESTRO")
SECONDS = {"DESED": 10, "DC16-T2": 120, "MAESTRO": 120}


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds of a call, and what it returned."""
    start, busy = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - start, time.process_time() - busy, result


# ---------------------------------------------------------------------------------------------------------------- heads


def made(width: int, n_classes: int, clips: int) -> tuple[dict[str, frozen.Crops], Problem]:
    """Random features with labels, and a run over them per seed."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(clips, 250, width, generator=draw).half()
    labels = (torch.rand(clips, n_classes, 250, generator=draw) < 0.1).float()
    names = ClassList.of([f"class{i}" for i in range(n_classes)])
    columns = (np.zeros(0, int),) * 2 + (np.zeros(0),) * 2
    pool = clip_set(
        [f"clip{i}" for i in range(clips)], Arrays([]), names, samples=np.full(clips, 160_000), events=columns
    )  # fmt: skip
    crops = frozen.Crops(np.arange(clips), np.zeros(clips, int), features, labels, labels.amax(2))
    part = Part("files", np.arange(clips))
    runs = tuple(Run(str(seed), seed, (part,), part) for seed in SEEDS)
    return {"files": crops}, Problem("bench", names, {"files": pool}, runs, "strong", lambda _: {})


def heads(args: argparse.Namespace) -> dict[str, Any]:
    """Heads of all rates and seeds as one problem, and one after the other."""
    device = torch.device(args.device)
    crops, problem = made(args.width, args.classes, args.clips)
    crops["files"] = dataclasses.replace(crops["files"], features=crops["files"].features.to(device))
    recipe = HeadRecipe(
        epochs=args.epochs, epoch_clips=args.clips, batch_size=args.batch_size, warmup_steps=5, optimiser="adam"
    )

    def trained(some: Problem, rates: list[float]) -> list[frozen.Heads | int]:
        return frozen.train_rates(crops, some, recipe, rates=rates, head="linear", device=device)

    def separate() -> list[list[frozen.Heads | int]]:
        alone = [dataclasses.replace(problem, runs=(run,)) for run in problem.runs]
        return [[trained(one, [rate])[0] for rate in RATES] for one in alone]

    trained(problem, RATES)  # warm
    wall, cpu, grid = timed(lambda: trained(problem, RATES))
    other_wall, other_cpu, single = timed(separate)
    worst = 0.0
    for (i, row), (j, together) in itertools.product(enumerate(single), enumerate(grid)):
        alone = row[j]
        assert isinstance(alone, frozen.Heads) and isinstance(together, frozen.Heads)
        worst = max(worst, float((alone.frame_weight[0] - together.frame_weight[i]).detach().abs().max()))
    found = {"batched_s": wall, "separate_s": other_wall, "ratio": other_wall / wall}
    found |= {"batched_cpu_s": cpu, "separate_cpu_s": other_cpu, "cpu_ratio": other_cpu / cpu}
    return found | {"largest_difference": worst}


# -------------------------------------------------------------------------------------------------------------- scoring


def piano(files: int, *, seconds: float, rate: float, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Notes at `rate` a second, and probabilities [frames, 88] of a fair model: some are missed, some are wrong."""
    draw = np.random.default_rng(seed)
    frames, events, scores = round(seconds * 25), {}, {}
    for k in range(files):
        count = draw.poisson(rate * seconds)
        onset = np.sort(draw.uniform(0, seconds - 0.1, count)).round(6)
        offset = np.minimum(onset + draw.lognormal(-0.9, 0.8, count) + 0.03, seconds).round(6)
        pitch = np.clip(draw.normal(64, 12, count).round(), 21, 108).astype(int)
        logits = draw.normal(-4, 1.2, (frames, 88)).astype(np.float32)
        for a, b, p in zip((onset * 25).astype(int), np.ceil(offset * 25).astype(int), pitch):
            logits[a + draw.integers(-1, 2) * (a > 0) : b, p - 21] += 6
        name = f"piece{seed}_{k}.wav"
        events[name] = [(a, b, str(p)) for a, b, p in zip(onset.tolist(), offset.tolist(), pitch.tolist())]
        scores[name] = 1 / (1 + np.exp(-logits))
    return events, scores


def scoring(args: argparse.Namespace) -> dict[str, Any]:
    """Score the probabilities of MAESTRO's five folds as a job of Table II does."""
    classes = ClassList.of([str(pitch) for pitch in range(21, 109)])
    folds = [piano(37, seconds=120.0, rate=args.notes, seed=fold) for fold in range(5)]
    truth = {name: rows for events, _ in folds for name, rows in events.items()}
    block = Config().downstream.MAESTRO
    assert block is not None
    score = hear.scorer(truth, classes, block)
    score(dict(list(folds[0][1].items())[:1]))  # warm: kernels are loaded
    wall, cpu, found = timed(lambda: [score(scores) for _, scores in folds])
    notes = {key: sum(fold[key] for fold in found) for key in ("reference_events", "detected_events")}
    names = ("value", "onset_200ms", "onset_offset_50ms")
    return {"wall_s": wall, "cpu_s": cpu, **notes, **{key: [fold[key] for fold in found] for key in names}}


# ---------------------------------------------------------------------------------------------------------------- cells


def counted(task: str, block: Task, counts: dict[str, int | None]) -> list[dict[str, Any]]:
    """Passes of the encoder over 10-s crops and trainings, of one model from one checkpoint: a row per mode and way."""
    skipped = ("classes", "seconds")
    clips = sum(number or 0 for name, number in counts.items() if name not in skipped)
    folds = sum(name.startswith("fold") for name in counts)
    runs, dense = folds or len(block.seeds), len(frozen.crop_starts(SECONDS[task] * 25, dense=True))
    grid = len(block.search.frozen)
    rows: list[tuple[str, str, int, float]] = [
        ("frozen", "batches encoded anew, each rate and seed alone", grid * runs * clips_of(block.frozen), grid * runs),
        ("frozen", "a cache per training, each rate and seed alone", grid * runs * clips * dense, grid * runs),
        ("frozen", "as here: one cache, all rates and seeds at once", clips * dense, 1),
    ]
    halved = block.model_copy(update={"search": block.search.model_copy(update={"halving": 0.25})})
    ways = {
        "every rate with every seed or fold": float(len(block.search.finetune) * runs),
        "as here: rates with the first seed, or each fold": trainings_of(block, folds),
        "halving: 0.25": trainings_of(halved, folds),
    }
    rows += [("finetune", way, round(n * clips_of(block.finetune)), n) for way, n in ways.items()]
    names = ("mode", "way", "passes", "trainings")
    return [{"task": task, **dict(zip(names, row))} for row in rows]


def cells(args: argparse.Namespace) -> dict[str, Any]:
    """Passes and trainings of a cell at the paper's sizes, hours by estimate; a cell of the miniature, timed."""
    config = Config().downstream
    rows = [counted(task, config.named[task], config.counts[task] or {}) for task in TASKS]
    table = pd.DataFrame(list(itertools.chain(*rows)))
    flops = sum(flops_per_clip(name, None) for name in Config().models) / len(Config().models)
    back = np.where(table["mode"] == "finetune", 3, 1)  # a backward pass is as two forward passes
    table["hours"] = (back * table["passes"] * flops / (args.share * PEAK) / 3600).round(3)
    print(table.to_string(index=False))
    found: dict[str, Any] = {"counted": table.to_dict("records")}
    if args.demo is None:
        return found
    task, name = "DC16-T2", args.models[0]
    block = demo_task(args.demo, task).of(name)
    grids = {"frozen": [0.005, 0.02, 0.08], "finetune": [0.002, 0.005, 0.02, 0.05]}

    def ran(mode: str, rates: list[float], seeds: list[int], halving: float | None = None) -> tuple[float, float]:
        search = TaskSearch.model_validate({mode: rates, "halving": halving})
        recipe = getattr(block, mode).model_copy(update={"learning_rate": "search"})
        options = block.model_copy(update={mode: recipe, "search": search, "seeds": seeds})
        return timed(lambda: scored(args, task, name, options, mode))[:2]

    def alone(mode: str) -> tuple[float, float]:
        pairs = [ran(mode, [rate], [seed]) for rate in grids[mode] for seed in block.seeds]
        return sum(wall for wall, _ in pairs), sum(cpu for _, cpu in pairs)

    ran("frozen", grids["frozen"][:1], block.seeds[:1])  # warm
    ways = {
        "frozen, alone": lambda: alone("frozen"),
        "frozen, as here": lambda: ran("frozen", grids["frozen"], block.seeds),
        "finetune, alone": lambda: alone("finetune"),
        "finetune, as here": lambda: ran("finetune", grids["finetune"], block.seeds),
        "finetune, halving": lambda: ran("finetune", grids["finetune"], block.seeds, halving=1 / 3),
    }
    found["miniature"] = {}
    for way, measure in ways.items():
        wall, cpu = measure()
        found["miniature"][way] = {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}
        print(f"{task} {name} {way}: {wall:.1f} s, CPU {cpu:.1f} s", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------------------- crops


def demo_task(demo: Path, task: str) -> Task:
    """The options of a task in the demo, with the data in the folder `demo`."""
    block = load_files("config/config.yaml", "config/demo.yaml").downstream.named[task]
    return block.model_copy(update={"data": str(demo / "data/miniature" / task)})


def scored(args: argparse.Namespace, task: str, model: str, options: Task, mode: str) -> pd.DataFrame:
    """The rows of a downstream job of the demo in one mode."""
    weights, about = args.demo / "checkpoints" / args.checkpoint / model, dict(checkpoint=args.checkpoint, modes=[mode])
    with tempfile.TemporaryDirectory() as folder:
        sizes = json.loads((weights / "spec.json").read_text())["sizes"]
        return tasks.run(task, options, model, weights, sizes=sizes, out_csv=Path(folder) / "o.csv", **about)


def frozen_heads(args: argparse.Namespace, task: str, model: str, options: list[Task]) -> list[pd.DataFrame]:
    """The rows of several frozen jobs."""
    return [scored(args, task, model, one, "frozen") for one in options]


def crops(args: argparse.Namespace) -> dict[str, Any]:
    """Frozen heads with crops every 5 s (true) and with random crops (fresh): scores, and differences by run."""
    assert args.demo is not None, "--only crops needs --demo"
    lines = []
    for name, task in itertools.product(args.models, args.tasks):
        block = demo_task(args.demo, task).of(name)
        seeds = list(range(1, args.seeds + 1))
        # MAESTRO has a run per fold (three here), whose seeds follow from the first one.
        groups = [[100 * seed] for seed in seeds[: -(-len(seeds) // 3)]] if task == "MAESTRO" else [seeds]
        line: dict[str, Any] = {"task": task, "model": name}
        values = {}
        for crop in (True, "fresh"):
            recipe = block.frozen.model_copy(update={"random_crop": crop})
            options = [block.model_copy(update={"frozen": recipe, "seeds": group}) for group in groups]
            wall, _, frames = timed(partial(frozen_heads, args, task, name, options))
            column = "psds1_without_penalty" if task == "DESED" else "value"
            key = "fresh" if crop == "fresh" else "dense"
            values[key] = pd.concat(frames)[column].to_numpy() * 100
            line |= {key: values[key].mean(), f"{key} std": values[key].std(ddof=1), f"{key} s": wall}
        gap = values["fresh"] - values["dense"]
        error = gap.std(ddof=1) / len(gap) ** 0.5
        lines.append(line | {"difference": gap.mean(), "standard error": error, "runs": len(gap)})
        print(pd.DataFrame(lines[-1:]).round(2).to_string(index=False), flush=True)
    return {"crops": lines}


def main() -> None:
    """Measure what `--only` names and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="heads", help="heads, scoring, cells or crops; several with commas")
    parser.add_argument("--demo", type=Path, help="results of a demo, such as results/demo")
    parser.add_argument("--models", nargs="+", default=["ATST-F", "BEATs"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--checkpoint", default="step2", choices=["step1", "step2"])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--notes", type=float, default=10.0, help="notes a second")
    parser.add_argument("--share", type=float, default=0.35, help="assumed share of a GPU's peak, for hours")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in args.only.split(","):
        found |= {"heads": heads, "scoring": scoring, "cells": cells, "crops": crops}[name](args)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
