"""Time and memory of evaluation, beside sed_scores_eval, scipy, sed_eval and deepsig called as the authors call them.

    python benchmarks/evaluation.py [--full] [--clips 500] [--only psds,filter,onset,aso,cold,full]

Each measurement has its own process. Times are CPU seconds over all threads, except "wall"; memory is the process's
peak above its memory before. Scores are synthetic, in AudioSet Strong's shape (250 frames, 407 classes). --full adds
16,935 clips: streamed (with the cross-check), and as one float16 and one float32 array (the last takes 8 GB of memory).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FRAMES, CLASSES = 250, 407
NAMES = [f"class{k:03d}" for k in range(CLASSES)]


def cpu(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Smallest CPU time of `repeats` calls, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def peak_gb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_truth(n_clips: int, seed: int = 0) -> tuple[dict[str, list[tuple[float, float, str]]], dict[str, float]]:
    """About nine events per clip, of about three classes with frequencies 1 / rank ** 0.7; every class occurs."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, CLASSES + 1) ** 0.7
    share /= share.sum()
    truth: dict[str, list[tuple[float, float, str]]] = {}
    for n in range(n_clips):
        events: list[tuple[float, float, str]] = []
        chosen = set(rng.choice(CLASSES, 3, replace=False, p=share).tolist()) | ({n} if n < CLASSES else set())
        for k in sorted(chosen):
            t = 0.0
            while len(events) < 12:
                onset = t + rng.exponential(1.5)
                offset = onset + 0.1 + rng.exponential(1.2)
                if offset > 9.9:
                    break
                events.append((round(onset, 3), round(offset, 3), NAMES[k]))
                t = offset + 0.2
            if not any(name == NAMES[k] for *_, name in events):
                events.append((1.0, 2.0, NAMES[k]))
        truth[f"clip{n:05d}"] = events
    return truth, {clip: 10.0 for clip in truth}


def make_scores(truth: dict[str, list[tuple[float, float, str]]], block: int = 64) -> Iterator[tuple[list[str], Any]]:
    """Logits of `block` clips at a time: noise that differs in every clip, raised where the events are."""
    rng = np.random.default_rng(1)
    bank = rng.normal(0, 1, (128, FRAMES, CLASSES)).astype(np.float32)
    index = {name: k for k, name in enumerate(NAMES)}
    clips = list(truth)
    for i in range(0, len(clips), block):
        names = clips[i : i + block]
        scores = np.empty((len(names), FRAMES, CLASSES), dtype=np.float32)
        for n, clip in enumerate(names):
            noise = np.roll(bank[rng.integers(len(bank))], int(rng.integers(FRAMES)), axis=0)
            scores[n] = noise * np.float32(rng.uniform(0.9, 1.1)) + np.float32(rng.normal(-7, 0.3))
            for onset, offset, name in truth[clip]:
                scores[n, int(onset * 25) : int(offset * 25) + 1, index[name]] += rng.normal(4, 2)
        yield names, scores


def measure_psds(n_clips: int) -> dict[str, Any]:
    from sed_scores_eval.base_modules.scores import create_score_dataframe
    from sed_scores_eval.intersection_based import psds

    from framekd.metrics import psds1

    truth, durations = make_truth(n_clips)
    scores = {clip: row for names, rows in make_scores(truth) for clip, row in zip(names, rows)}
    psds1(scores, truth, durations, NAMES)
    ours, result = cpu(lambda: psds1(scores, truth, durations, NAMES), 3)
    before, stamps = peak_gb(), np.minimum(np.arange(FRAMES + 1) * 0.04, 10.0)

    def reference() -> Any:
        frames = {clip: create_score_dataframe(row, stamps, NAMES) for clip, row in scores.items()}
        return psds(frames, truth, durations, dtc_threshold=0.7, gtc_threshold=0.7, alpha_st=1)

    theirs, (penalised, single, *_) = cpu(reference)
    difference = max(abs(result.per_class[name] - single[name]) for name in NAMES)
    return {
        "what": f"PSDS1, {n_clips} clips × {CLASSES} classes", "reference": "sed_scores_eval", "theirs": theirs,
        "ours": ours, "note": f"per class within {difference:.0e}, with the penalty within "
        f"{abs(result.at(1.0) - penalised):.0e}; reference {peak_gb() - before:.1f} GB above the scores",
    }  # fmt: skip


def measure_full(form: str, n_clips: int = 16935) -> dict[str, Any]:
    from framekd.metrics import PSDS, CrossCheck, psds1
    from framekd.metrics._compile import kernels

    kernels("psds")
    truth, durations = make_truth(n_clips)
    if form == "streamed":
        next(make_scores(dict(list(truth.items())[:2])))
        before, spent, wall = peak_gb(), 0.0, 0.0
        evaluation, check = PSDS(NAMES, truth, durations), CrossCheck(NAMES, truth, durations)
        for names, rows in make_scores(truth):
            check.add(names, rows)
            start, clock = time.process_time(), time.perf_counter()
            evaluation.add(names, rows)
            spent, wall = spent + time.process_time() - start, wall + time.perf_counter() - clock
        start, clock = time.process_time(), time.perf_counter()
        result = evaluation.result()
        spent, wall = spent + time.process_time() - start, wall + time.perf_counter() - clock
        memory = f"{peak_gb():.2f} GB in all (with the noise bank, {before:.2f} GB before)"
        checking, differences = cpu(lambda: check.verify(result))
        memory += f"; cross-check of {len(differences)} classes {checking:.1f} s, {peak_gb():.2f} GB, "
        memory += f"within {max(map(abs, differences.values())):.0e}"
    else:
        scores = np.empty((n_clips, FRAMES, CLASSES), dtype=form)
        done = 0
        for names, rows in make_scores(truth):
            scores[done : done + len(names)] = rows
            done += len(names)
        before, clock = peak_gb(), time.perf_counter()
        spent, result = cpu(lambda: psds1(scores, truth, durations, NAMES, clips=list(truth)))
        wall = time.perf_counter() - clock
        memory = f"{peak_gb() - before:.2f} GB above the scores' {scores.nbytes / 2**30:.1f} GB"
    return {"what": f"PSDS1, {n_clips} × {CLASSES} × {FRAMES}, {form}", "reference": "", "theirs": None, "ours": spent,
            "note": f"{wall:.1f} s wall; {memory}; value {result.value:.6f}"}  # fmt: skip


def measure_filter(window: int) -> dict[str, Any]:
    from scipy.ndimage import median_filter as scipy_filter

    from framekd.metrics import median_filter

    scores = np.random.default_rng(0).normal(size=(50, FRAMES, 447)).astype(np.float32)
    median_filter(scores, frames=window)
    ours, filtered = cpu(lambda: median_filter(scores, frames=window), 3)
    theirs, expected = cpu(lambda: np.stack([scipy_filter(clip, size=(window, 1)) for clip in scores]))
    assert np.array_equal(filtered, expected)
    return {"what": f"median filter, {window} frames, 50 clips × {FRAMES} × 447", "reference": "scipy",
            "theirs": theirs, "ours": ours, "note": "bit-equal"}  # fmt: skip


def make_notes(files: int, notes: int, classes: int, seconds: float = 120.0) -> tuple[dict, dict]:
    """Reference events and estimates: onsets with noise of 30 ms, a tenth missing, a tenth added."""
    rng = np.random.default_rng(3)
    reference, estimated = {}, {}
    for f in range(files):
        starts = np.sort(rng.uniform(0, seconds - 1, notes // files))
        labels = rng.integers(0, classes, len(starts))
        reference[f"f{f}"] = [(float(t), float(t) + 0.5, f"n{k}") for t, k in zip(starts, labels)]
        kept = rng.random(len(starts)) < 0.9
        moved = [(float(t + rng.normal(0, 0.03)), float(t) + 0.5, f"n{k}") for t, k in zip(starts[kept], labels[kept])]
        extra = [
            (float(t), float(t) + 0.2, f"n{rng.integers(classes)}") for t in rng.uniform(0, seconds, len(starts) // 10)
        ]
        estimated[f"f{f}"] = moved + extra
    return reference, estimated


def measure_onset(files: int, notes: int, classes: int, name: str) -> dict[str, Any]:
    import sed_eval
    from dcase_util.containers import MetaDataContainer

    from framekd.metrics import onset_f1

    reference, estimated = make_notes(files, notes, classes)
    labels = sorted({c for events in (*reference.values(), *estimated.values()) for *_, c in events})
    ours, result = cpu(lambda: onset_f1(reference, estimated, collar=0.05), 3)

    def table(events: list, file: str) -> Any:
        return MetaDataContainer([{"filename": file, "onset": a, "offset": b, "event_label": c} for a, b, c in events])

    def run() -> Any:
        metric = sed_eval.sound_event.EventBasedMetrics(
            labels, t_collar=0.05, evaluate_onset=True, evaluate_offset=False
        )
        for file in reference:
            metric.evaluate(table(reference[file], file), table(estimated[file], file))
        return metric.results_overall_metrics()["f_measure"]

    theirs, expected = cpu(run)
    off = abs(result.f1 - expected["f_measure"])
    return {"what": f"onset F, {name}: {files} files, {notes} events, {classes} classes", "reference": "sed_eval",
            "theirs": theirs, "ours": ours, "note": f"F {result.f1:.6f}, off by {off:.0e}"}  # fmt: skip


def measure_aso() -> dict[str, Any]:
    import deepsig

    from framekd.significance import compare

    a, b = [0.463, 0.467, 0.459], [0.461, 0.456, 0.457]
    compare(a, b)
    ours, exact = cpu(lambda: [compare(a, b) for _ in range(20)][-1])
    drawn, sampled = cpu(lambda: [compare(a, b, exact=False) for _ in range(20)][-1])
    theirs, value = cpu(lambda: deepsig.aso(a, b, confidence_level=0.99, seed=1, show_progress=False))
    return {"what": "ASO, 3 against 3 seeds, level 0.99", "reference": "deepsig", "theirs": theirs, "ours": ours / 20,
            "note": f"enumerated {exact.eps_min:.3f}, 1,000 draws {sampled.eps_min:.3f} in {drawn / 20 * 1e3:.1f} ms, "
            f"deepsig {value:.3f}"}  # fmt: skip


def measure_cold() -> dict[str, Any]:
    """First process on a machine (compilation) and second, with a fresh cache folder."""
    code = (
        "import numpy as np; from framekd.metrics import psds1, median_filter;"
        "x = median_filter(np.zeros((2, 250, 3), np.float32));"
        "psds1(x, {'a': [(0, 1, 'x'), (0, 1, 'y'), (0, 1, 'z')], 'b': []}, {'a': 10., 'b': 10.}, ['x', 'y', 'z'],"
        "clips=['a', 'b'])"
    )
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"NUMBA_CACHE_DIR": folder})
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            runs.append((spent, time.perf_counter() - start))
    (cold, cold_wall), (warm, warm_wall) = runs
    note = f"{cold_wall:.1f} s wall; the next process {warm:.1f} s, {warm_wall:.1f} s wall, with Python's start"
    return {"what": "first evaluation of a machine (compilation)", "reference": "", "theirs": None, "ours": cold,
            "note": note}  # fmt: skip


MEASUREMENTS: dict[str, Callable[[int], list[tuple[Callable[..., dict[str, Any]], tuple]]]] = {
    "psds": lambda clips: [(measure_psds, (clips,))],
    "filter": lambda clips: [(measure_filter, (9,)), (measure_filter, (12,))],
    "onset": lambda clips: [
        (measure_onset, (54, 2240, 11, "DC16-T2-like")),
        (measure_onset, (6, 6390, 88, "MAESTRO-like")),
    ],
    "aso": lambda clips: [(measure_aso, ())],
    "cold": lambda clips: [(measure_cold, ())],
    "full": lambda clips: [(measure_full, (form,)) for form in ("streamed", "float16", "float32")],
}


def show(row: dict[str, Any]) -> str:
    theirs = "" if row["theirs"] is None else f"{row['theirs']:.2f} s ({row['reference']})"
    ours = f"{row['ours']:.2f} s" if row["ours"] >= 1 else f"{row['ours'] * 1e3:.1f} ms"
    ratio = "" if row["theirs"] is None else f"{row['theirs'] / row['ours']:.0f} ×"
    return f"| {row['what']} | {theirs} | {ours} | {ratio} | {row['note']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also 16,935 clips")
    parser.add_argument(
        "--clips", type=int, default=500, help="clips of the comparison with sed_scores_eval (at least 407)"
    )
    parser.add_argument("--only", default="", help="comma-separated: " + ", ".join(MEASUREMENTS))
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        name, index = options.one.split(":")
        function, arguments = MEASUREMENTS[name](options.clips)[int(index)]
        print("\n" + json.dumps(function(*arguments)))
        return
    wanted = options.only.split(",") if options.only else [n for n in MEASUREMENTS if n != "full" or options.full]
    rows = []
    print("| what | reference, CPU | framekd, CPU | ratio | note |\n|---|---|---|---|---|")
    for name in wanted:
        for index in range(len(MEASUREMENTS[name](options.clips))):
            command = [sys.executable, __file__, "--one", f"{name}:{index}", "--clips", str(options.clips)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(show(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
