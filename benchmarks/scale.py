"""How long the paper's run takes on 1, 8, 16 and 64 GPUs: its graph of GPU jobs, simulated from estimated job times.

    python benchmarks/scale.py [--share 0.35] [--start-minutes 2]

Times follow from the models' FLOPs and an assumed share of a GPU's peak, as in `benchmarks/training.py --only hours`.
Nothing here was measured on a GPU. Data, queues and scoring cost nothing here. The longest remaining path runs first.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, field

from training import PEAK, clips_of, flops_per_clip, trainings_of

from framekd.config import Config

COUNTS = (1, 8, 16, 64)


@dataclass
class Job:
    """One training, ensemble or downstream job: hours of one GPU, and what it waits for."""

    hours: float
    after: list[str] = field(default_factory=list)


def graph(config: Config, *, share: float, start_minutes: float) -> dict[str, Job]:
    """GPU jobs of Table I and Table II by name."""
    jobs: dict[str, Job] = {}

    def add(name: str, flops: float, after: list[str]) -> None:
        jobs[name] = Job(flops / (share * PEAK) / 3600 + start_minutes / 60, after)

    plain = {model: flops_per_clip(model, None) for model in config.models}
    rnn = {model: flops_per_clip(model, "bigru") for model in config.models}
    for model in config.step2.train:
        add(f"step2 {model}", 3 * clips_of(config.step2.recipe) * plain[model], [])
    teachers = {config.teachers_of(setting) for setting in config.settings} - {None}
    for setting in config.settings:
        resolved = config.setting(setting)

        def start(model: str, where: str = resolved.start) -> list[str]:
            return [f"step2 {model}"] if where == "step2" and model in config.step2.train else []

        if setting in teachers and resolved.teacher is not None:
            cost, members = (rnn if resolved.teacher.sequence_model else plain), []
            for model in config.models:
                for seed in config.seeds:
                    members.append(f"teacher {setting} {model} {seed}")
                    add(members[-1], 3 * clips_of(resolved.teacher.recipe) * cost[model], start(model))
            add(f"ensemble {setting}", 100_000 * len(config.seeds) * sum(cost.values()), members)
        if resolved.student is not None:
            by = config.teachers_of(setting)
            for model in config.models:
                for seed in config.seeds:
                    after = [*start(model), *([f"ensemble {by}"] if by else [])]
                    flops = 3 * clips_of(resolved.student.recipe) * plain[model]
                    add(f"student {setting} {model} {seed}", flops, after)
    for task, folds in (("DESED", 0), ("DC16_T2", 0), ("MAESTRO", 5)):
        block = getattr(config.downstream, task)
        for model in config.models:
            flops = 3 * trainings_of(block, folds) * clips_of(block.finetune) * plain[model]
            for checkpoint in config.downstream.checkpoints:
                needs = {"step2": [f"step2 {model}"], "full": [f"student {config.downstream.full_setting} {model} 1"]}
                add(f"{task} {model} {checkpoint}", flops, [n for n in needs.get(checkpoint, []) if n in jobs])
    return jobs


def longest(jobs: dict[str, Job]) -> dict[str, float]:
    """Hours from the start of each job to the end of the longest path that begins with it."""
    followers: dict[str, list[str]] = {name: [] for name in jobs}
    for name, job in jobs.items():
        for before in job.after:
            followers[before].append(name)
    rest: dict[str, float] = {}

    def of(name: str) -> float:
        if name not in rest:
            rest[name] = jobs[name].hours + max(map(of, followers[name]), default=0.0)
        return rest[name]

    return {name: of(name) for name in jobs}


def makespan(jobs: dict[str, Job], gpus: int) -> float:
    """Hours until all jobs are done."""
    rest, waits = longest(jobs), {name: len(job.after) for name, job in jobs.items()}
    ready = [(-rest[name], name) for name, n in waits.items() if not n]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < gpus:
            name = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + jobs[name].hours, name))
        now, ended = heapq.heappop(running)
        for name, job in jobs.items():
            if ended in job.after:
                waits[name] -= 1
                if not waits[name]:
                    heapq.heappush(ready, (-rest[name], name))
    return now


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--share", type=float, default=0.35, help="assumed share of a GPU's peak")
    options.add_argument("--start-minutes", type=float, default=2.0, help="what every job costs beyond its work")
    given = options.parse_args()
    jobs = graph(Config(), share=given.share, start_minutes=given.start_minutes)
    total, rest = sum(job.hours for job in jobs.values()), longest(jobs)
    first = max(rest, key=lambda name: rest[name])
    path, name = [first], first
    while after := [other for other, job in jobs.items() if name in job.after]:
        name = max(after, key=lambda other: rest[other])
        path.append(name)
    print(f"{len(jobs)} GPU jobs, {total:.0f} GPU hours; estimated, not measured on a GPU")
    print(f"critical path {rest[first]:.1f} h: {' -> '.join(path)}")
    print("GPUs   hours   GPUs in use")
    for gpus in COUNTS:
        hours = makespan(jobs, gpus)
        print(f"{gpus:4d}{hours:8.1f}{100 * total / hours / gpus:12.0f} %")


if __name__ == "__main__":
    main()
