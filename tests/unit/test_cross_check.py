"""The second opinion agrees with PSDS on everything that an evaluation does, and stops it on a difference."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from framekd.config import UserError
from framekd.metrics import PSDS, CrossCheck, evaluation_classes

CLASSES = [f"c{k}" for k in range(8)]


def recordings(seed=0, n_clips=60):
    """Clips with overlapping, touching, empty and late events, some without any evaluated event; classes untrained."""
    rng = np.random.default_rng(seed)
    truth, durations = {}, {}
    for n in range(n_clips):
        names = [] if n % 7 == 0 else [CLASSES[n % 8], str(rng.choice(CLASSES))]
        starts = rng.integers(0, 9500, len(names)) / 1000
        truth[f"f{n}"] = [(float(t), float(t + rng.integers(0, 4000) / 1000), c) for t, c in zip(starts, names)]
        if n % 3 == 0:
            truth[f"f{n}"] += [(1.0, 2.0, "c1"), (2.0, 2.5, "c1"), (2.25, 3.0, "c1"), (4.0, 4.0, "c2")]
        if n % 5 == 0:
            truth[f"f{n}"].append((0.0, 1.0, "never trained"))
        durations[f"f{n}"] = float(rng.choice([10.0, 7.3]))
    scores = rng.normal(size=(n_clips, 250, 10)).astype(np.float32).round(2)
    for n, events in enumerate(truth.values()):
        for onset, offset, name in events:
            if name in CLASSES:
                scores[n, int(onset * 25) : int(offset * 25) + 1, CLASSES.index(name) + 1] += 3
    return truth, durations, scores, ["unused", *CLASSES, "unused too"]


def evaluate(truth, durations, scores, columns, *, count=5, seed=0, **options):
    """An evaluation in portions, as the pipeline makes it."""
    classes = evaluation_classes(CLASSES, truth)
    scorer = PSDS(classes, truth, durations, score_classes=columns, other_classes="drop", **options)
    check = CrossCheck(classes, truth, durations, score_classes=columns, count=count, seed=seed)
    clips = list(truth)
    for i in range(0, len(clips), 7):
        for part in (scorer, check):
            part.add(clips[i : i + 7], torch.from_numpy(scores[i : i + 7]))
    return scorer.result(), check


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("e_max", [100.0, 2000.0])
def test_it_agrees_with_psds(drop, e_max):
    result, check = evaluate(*recordings(), drop_clips_without_events=drop, e_max=e_max, count=99)
    assert result.merged_events > 0 and bool(result.dropped_clips) == drop and result.ignored_events > 0
    found = check.verify(result)
    assert list(found) == CLASSES and max(map(abs, found.values())) <= 1e-9
    assert 0 < result.value < 1


def test_a_difference_stops_the_run():
    result, check = evaluate(*recordings())
    name = check.chosen[2]
    changed = dataclasses.replace(result, per_class=result.per_class | {name: result.per_class[name] + 2e-9})
    with pytest.raises(RuntimeError, match=f"class {name} .*sed_scores_eval"):
        check.verify(changed)
    broken = dataclasses.replace(result, per_class=result.per_class | {name: float("nan")})
    with pytest.raises(RuntimeError, match=name):
        check.verify(broken)


def test_other_scores_are_noticed():
    truth, durations, scores, columns = recordings()
    _, check = evaluate(truth, durations, scores, columns)
    result, _ = evaluate(truth, durations, scores + np.random.default_rng(1).normal(size=scores.shape), columns)
    with pytest.raises(RuntimeError):
        check.verify(result)


def test_the_seed_chooses_the_classes():
    chosen = [tuple(evaluate(*recordings(), seed=seed)[1].chosen) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1] and len(set(chosen)) > 1
    assert all(len(set(names)) == 5 and list(names) == sorted(names) for names in chosen)


def test_it_keeps_the_chosen_curves_only():
    _, check = evaluate(*recordings(), count=2)
    curves = check._scores.values()
    assert {(values.shape, values.dtype.name) for values in curves} == {((250, 2), "float32")}
    assert all(values.base is None or values.base.size <= 7 * 250 * 2 for values in curves)


def test_bad_input():
    truth, durations, scores, columns = recordings()
    with pytest.raises(ValueError, match="count"):
        CrossCheck(CLASSES, truth, durations, count=0)
    check = CrossCheck(CLASSES, truth, durations, score_classes=columns)
    truth["f1"].append((2.0, 1.0, check.chosen[0]))
    check.add(list(truth), scores)
    with pytest.raises(UserError, match="Clip f1"):
        check.reference(dtc=0.7, gtc=0.7, e_max=100.0, drop_clips_without_events=False)


def test_the_package_is_imported_only_for_a_check():
    code = "import sys, framekd.metrics; print('sed_scores_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
