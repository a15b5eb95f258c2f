"""Everything that a finished run leaves, in the layout of the pipeline: for tests of tables and report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from framekd import config, tables
from framekd.examples import Example, write_examples
from framekd.graph import Graph
from framekd.report import ReportInputs

MODELS = list(config.MODELS)
SECONDS = {"teacher": 300.0, "student": 500.0, "evaluate": 42.0}
CLASSES = ["Speech", "Dog", "Siren", "Rain", "Door", "Applause", "Bell", "Engine"]


def write_csv(path: Path, rows: list[dict], *, sep: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, sep=sep)


def evaluations(settings: config.Config, results: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Where the pipeline writes the scores of Table I's settings, and those of the teachers."""
    graph = Graph(settings.model_copy(update={"results_dir": str(results)}))
    table = {name: graph.scores(name) for name in tables.in_order(settings.settings)}
    return table, {name: graph.teacher_scores(name) for name in tables.in_order(graph.teacher_settings)}


def write_evaluations(results: Path, settings: config.Config, *, seed: int = 0) -> None:
    """Evaluation and downstream rows, drawn from a generator."""
    draw = np.random.default_rng(seed)
    students = [name for name in settings.settings if settings.setting(name).student]
    own = ["proposed", "without_rnn", "without_step2"]
    for stage, names in {"students": students, "teachers": own}.items():
        for name in names:
            base = {"setting": name, "stage": stage, "clips": 1200, "hours": 10 / 3, "events": 9000, "classes": 8}
            for model, seed in itertools.product(MODELS, settings.seeds):
                row = {**base, "model": model, "seed": seed, "psds1": draw.uniform(0.1, 0.5)}
                write_csv(results / "evaluation" / stage / name / model / f"seed{seed}.csv", [row])
            if stage == "teachers":
                row = {**base, "model": "ensemble", "seed": "", "psds1": draw.uniform(0.1, 0.5)}
                write_csv(results / "evaluation" / "ensembles" / f"{name}.csv", [row])
    for task, model, checkpoint in itertools.product(tables.TASKS, MODELS, settings.downstream.checkpoints):
        key = {"task": task, "model": model, "checkpoint": checkpoint}
        modes = ["frozen", "constant"] if checkpoint == "untrained" else settings.downstream.modes
        runs = itertools.product(modes, (1, 2))
        rows = [{**key, "mode": mode, "seed": s, "value": draw.uniform()} for mode, s in runs]
        for row in rows if task == "DESED" else ():
            row["psds1_without_penalty"] = row["value"] + 0.25
        write_csv(results / "downstream" / task / model / f"{checkpoint}.csv", rows)


def example_clips(seed: int = 0, count: int = 2) -> list[Example]:
    """Noise with tones where the events are, and scores that rise there."""
    draw = np.random.default_rng(seed)
    clips = []
    for number in range(count):
        wave = 0.02 * draw.standard_normal(160_000)
        scores = draw.uniform(0, 0.15, (len(CLASSES), 250))
        events = []
        for k in draw.choice(len(CLASSES), 3, replace=False):
            on = float(draw.uniform(0, 8))
            off = on + float(draw.uniform(0.5, 2))
            time = np.arange(int(on * 16_000), int(off * 16_000))
            wave[time] += 0.2 * np.sin(2 * np.pi * (300 + 400 * k) * time / 16_000)
            scores[k, int(on * 25) + 3 : int(off * 25) + 4] = 0.8
            events.append((on, off, CLASSES[k]))
        clips.append(Example(id=f"-clip_{number}_30000", waveform=wave, events=events, scores=scores))
    return clips


def inputs_of(results: Path, data: Path) -> ReportInputs:
    """The files of `write_finished_run` as the report's rule lists them, and histories of Step 2, which are absent."""
    evaluation = results / "evaluation" / "students" / "proposed"
    scored = [evaluation / model / f"seed{seed}" for model, seed in itertools.product(MODELS, (1, 2))]
    runs = list(itertools.product(("teachers", "students"), ("proposed",), MODELS, (1, 2)))
    folders = [(run, results / run[0] / run[1] / run[2] / f"seed{run[3]}") for run in runs]
    step2 = [("Step 2", model, results / "checkpoints" / "step2" / model) for model in MODELS]
    return ReportInputs(
        tables={name: results / f"{name}.csv" for name in ("table1", "teachers", "significance", "table2")},
        evaluations=[
            ("students", "proposed", path.with_suffix(".csv"), path.with_suffix(".per_class.csv")) for path in scored
        ],
        examples=scored[0].with_suffix(".examples.npz"),
        histories=[
            *(("Step 2", "Step 2", model, "", folder / "history.jsonl") for _, model, folder in step2),
            *((stage, setting, m, f"seed{s}", folder / "history.jsonl") for (stage, setting, m, s), folder in folders),
        ],
        specs=[(run[0], folder / "spec.json") for run, folder in folders],
        coverage=[data / "coverage" / f"{group}.tsv" for group in ("strong", "eval")],
        benchmarks=[(stage, results / "benchmarks" / stage / "proposed.tsv") for stage in SECONDS],
    )  # fmt: skip


def write_finished_run(results: Path, data: Path, settings: config.Config, *, published: Path) -> ReportInputs:
    """Write tables, histories, per-class scores, examples, coverage and benchmarks; list them for the report."""
    draw = np.random.default_rng(1)
    write_evaluations(results, settings)
    table, own = evaluations(settings, results)
    note = {"miniature": settings.miniature is not None, "published_dir": published}
    tables.write_table("table1", table, results / "table1.csv", **note)
    tables.write_table("teachers", own, results / "teachers.csv", **note)
    tables.write_table("table2", sorted(results.glob("downstream/*/*/*.csv")), results / "table2.csv", **note)
    tables.write_significance(table, results / "significance.csv", alpha=0.05, comparisons=5, epsilon=0.2)
    for model, seed in itertools.product(MODELS, (1, 2)):
        rows = [{"model": model, "seed": seed, "class": c, "psds1": draw.uniform(0, 0.6)} for c in CLASSES]
        write_csv(results / "evaluation" / "students" / "proposed" / model / f"seed{seed}.per_class.csv", rows)
    for stage, setting, model, seed in itertools.product(("teachers", "students"), ("proposed",), MODELS, (1, 2)):
        folder = results / stage / setting / model / f"seed{seed}"
        folder.mkdir(parents=True)
        loss = 0.1 + 0.6 * np.exp(-np.arange(200) / 40) + 0.02 * draw.standard_normal(200)
        lines = [json.dumps({"step": i + 1, "train/loss": value}) for i, value in enumerate(loss)]
        (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
        spent = {"device": "H200", "processes": 2, "hours": 1.5} | ({"watt_hours": 700.0} if seed == 1 else {})
        (folder / "spec.json").write_text(json.dumps({"provenance": spent}))
    write_examples(
        results / "evaluation" / "students" / "proposed" / MODELS[0] / "seed1.examples.npz",
        example_clips(),
        classes=CLASSES,
        title="proposed student, ATST-F",
    )
    states = {"wanted": 100, "ok": 97, "gone": 2, "corrupt": 1}
    for group, split in (("strong", "strong_train"), ("eval", "strong_eval")):
        rows = [
            {"split": split, "class": name, "state": state, "clips": count // (1 if name is None else 2)}
            for name in (None, "Dog", "Siren")
            for state, count in states.items()
        ]
        write_csv(data / "coverage" / f"{group}.tsv", rows, sep="\t")
    for stage, seconds in SECONDS.items():
        write_csv(results / "benchmarks" / stage / "proposed.tsv", [{"s": seconds, "max_rss": 900.0}], sep="\t")
    return inputs_of(results, data)
