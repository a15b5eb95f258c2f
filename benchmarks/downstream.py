"""Speed of frozen heads: a grid of learning rates and seeds as one problem, beside one training per rate and seed.

    OMP_NUM_THREADS=1 python benchmarks/downstream.py [--width 64] [--classes 10] [--epochs 5] [--json FILE]

Both ways run in one process on the same random features, and the largest difference between their heads is printed.
Beside wall times stand the process's own CPU times, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from framekd.config import HeadRecipe
from framekd.data import Arrays, clip_set
from framekd.labels import ClassList
from framekd.tasks import frozen
from framekd.tasks.problem import Part, Problem, Run

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SEEDS = [1, 2, 3, 4]


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


def main() -> None:
    """Measure both ways and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    crops, problem = made(args.width, args.classes, args.clips)
    crops["files"] = dataclasses.replace(crops["files"], features=crops["files"].features.to(device))
    recipe = HeadRecipe(
        epochs=args.epochs, epoch_clips=args.clips, batch_size=args.batch_size, warmup_steps=5, optimiser="adam"
    )

    def trained(some: Problem, rates: list[float]) -> list[frozen.Heads | int]:
        return frozen.train_rates(crops, some, recipe, rates=rates, head="linear", device=device)

    trained(problem, RATES)  # warm
    start, busy = time.perf_counter(), time.process_time()
    grid = trained(problem, RATES)
    batched, batched_cpu = time.perf_counter() - start, time.process_time() - busy
    start, busy, worst = time.perf_counter(), time.process_time(), 0.0
    for i, run in enumerate(problem.runs):
        one = dataclasses.replace(problem, runs=(run,))
        for rate, together in zip(RATES, grid):
            [alone] = trained(one, [rate])
            assert isinstance(alone, frozen.Heads) and isinstance(together, frozen.Heads)
            worst = max(worst, float((alone.frame_weight[0] - together.frame_weight[i]).detach().abs().max()))
    separate, separate_cpu = time.perf_counter() - start, time.process_time() - busy
    found = {"batched_s": batched, "separate_s": separate, "ratio": separate / batched}
    found |= {"batched_cpu_s": batched_cpu, "separate_cpu_s": separate_cpu, "cpu_ratio": separate_cpu / batched_cpu}
    found["largest_difference"] = worst
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
