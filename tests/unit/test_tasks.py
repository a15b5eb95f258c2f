"""Downstream tasks: readers, HEAR's labels and events, batched heads against heads one by one, complete runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from downstream_sets import CLASSES, write_desed, write_hear

from framekd import tasks
from framekd.checkpoints import save_checkpoint
from framekd.config import HeadRecipe, Task, TrainRecipe, UserError
from framekd.data import Batch, clip_set
from framekd.labels import ClassList
from framekd.models import build_model
from framekd.tasks import desed, frozen, hear, transfer
from framekd.tasks.heads import losses
from framekd.tasks.problem import Audio, Part, Problem, Run
from framekd.train import Objective

CPU = torch.device("cpu")
SHORT = dict(epochs=2, epoch_clips=8, batch_size=4, learning_rate=0.01, warmup_steps=1)
QUICK = {"frozen": HeadRecipe(**SHORT), "finetune": TrainRecipe(**SHORT)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_desed(root / "desed")
    write_hear(root / "dcase", {"train": 3, "valid": 1, "test": 2})
    write_hear(root / "maestro", {f"fold0{f}": 1 for f in range(5)})
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model("tiny", n_classes=7).init_weights(torch.Generator().manual_seed(3))
    save_checkpoint(folder, model, classes=list("abcdefg"), provenance={})
    return folder


# ------------------------------------------------------------------------------------------------- labels, events


def test_hear_labels_are_the_frames_whose_centre_is_inside():
    draw = np.random.default_rng(0)
    onset = np.concatenate([draw.uniform(0, 9, 200), np.arange(20) * 0.02])
    offset = onset + np.concatenate([draw.uniform(0, 0.5, 200), np.full(20, 0.04)])
    begin, end = hear.centre_frames(onset, offset)
    centre = (np.arange(300) + 0.5) * 0.04
    for a, b, first, stop in zip(onset, offset, begin, end):
        active = np.flatnonzero((centre >= a - 1e-12) & (centre < b + 1e-7))
        assert list(range(first, stop)) == active.tolist(), (a, b)


def brute_events(scores, names, min_seconds):
    """One class at a time, one frame at a time."""
    out = []
    for c, name in enumerate(names):
        run = []
        for t in range(len(scores) + 1):
            if t < len(scores) and scores[t, c] > 0.5:
                run.append(round((t + 0.5) * 0.04, 6))
                continue
            if run and run[-1] - run[0] >= min_seconds - 1e-9:
                out.append((run[0], run[-1], name))
            run = []
    return sorted(out)


@pytest.mark.parametrize("min_seconds", [0.0, 0.05, 0.125])
def test_detected_events_equal_a_walk_over_the_frames(min_seconds):
    scores = np.random.default_rng(1).uniform(size=(400, 5)) ** 0.3
    found = hear.detect(scores, list("abcde"), min_seconds=min_seconds)
    found = sorted((round(a, 6), round(b, 6), c) for a, b, c in found)
    assert found == brute_events(scores, list("abcde"), min_seconds) and len(found) > 20


def test_shortest_events_are_the_papers():
    """125 ms keep five frames and drop four; 50 ms keep three and drop two."""
    for seconds, keeps in ((0.125, 5), (0.05, 3)):
        for frames in (keeps - 1, keeps):
            scores = np.zeros((50, 1))
            scores[10 : 10 + frames] = 1
            found = hear.detect(scores, ["a"], min_seconds=seconds)
            assert len(found) == (frames == keeps)
    assert found == [(pytest.approx(0.42), pytest.approx(0.5), "a")]


def test_perfect_scores_give_a_perfect_f_measure(sets):
    """The labels of the files, fed back as scores, find every onset within 50 ms."""
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    pool, run = problem.pools["files"], problem.runs[0]
    predictions = {}
    for i in run.test.clips:
        frames = np.zeros((-(-int(pool.samples[i]) // 640), len(CLASSES)))
        for k in range(pool.start[i], pool.start[i + 1]):
            frames[pool.begin[k] : pool.end[k], pool.label[k]] = 1
        predictions[pool.ids[i]] = frames
    metrics = problem.score(predictions)
    assert metrics["value"] == 1.0 and metrics["reference_events"] == metrics["detected_events"] == 40
    silent = problem.score({name: np.zeros_like(values) for name, values in predictions.items()})
    assert silent["value"] == 0.0


# ------------------------------------------------------------------------------------------------- readers


def test_hear_splits_and_folds(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[4, 5]))
    assert [run.seed for run in problem.runs] == [4, 5]
    pool = problem.pools["files"]
    assert {pool.ids[i][:5] for i in problem.runs[0].train[0].clips} == {"train"}
    assert {pool.ids[i][:4] for i in problem.runs[0].test.clips} == {"test"}
    folds = tasks.load("MAESTRO", Task(data=str(sets / "maestro"), seeds=[1])).runs
    assert len(folds) == 5 and len({run.seed for run in folds}) == 5
    for f, run in enumerate(folds):
        assert run.test.clips.tolist() == [f]
        assert set(run.train[0].clips.tolist()) == set(range(5)) - {f, (f + 1) % 5}


def test_notes_that_touch_are_scored_as_annotated(tmp_path):
    """Repeated notes are one run of label frames, but stay two events of the reference."""
    root = write_hear(tmp_path / "set", {"train": 1, "valid": 1, "test": 1}, seconds=10)
    path = root / "test.json"
    content = json.loads(path.read_text())
    notes = [{"label": 61, "start": 1000, "end": 1500}, {"label": 61, "start": 1500, "end": 2000}]
    path.write_text(json.dumps(dict.fromkeys(content, notes)))
    problem = tasks.load("DC16-T2", Task(data=str(root), seeds=[1]))
    scores = np.zeros((250, len(CLASSES)))
    scores[25:50, 1] = 1
    metrics = problem.score({"test_0.wav": scores})
    assert metrics["reference_events"] == 2 and metrics["recall"] == 0.5


def test_desed_reader(sets):
    problem = tasks.load("DESED", Task(data=str(sets / "desed"), seeds=[1], head="attention"))
    assert problem.classes.names == CLASSES and problem.objective == "both"
    assert {name: len(pool) for name, pool in problem.pools.items()} == {"synthetic": 16, "validation": 10, "weak": 12}
    assert problem.pools["synthetic"].has_frames.all() and not problem.pools["weak"].has_frames.any()
    truth = problem.pools["validation"].ground_truth()
    scores = {}
    for name, events in truth.items():
        scores[name] = np.zeros((250, 4), np.float32)
        for onset, offset, label in events:
            scores[name][round(onset * 25) : round(offset * 25), CLASSES.index(label)] = 1
    metrics = problem.score(scores)
    assert metrics["psds1_without_penalty"] == pytest.approx(1.0) and metrics["value"] == pytest.approx(1.0)


def test_desed_rows(tmp_path):
    tsv = tmp_path / "v.tsv"
    tsv.write_text("filename\tonset\toffset\tevent_label\na.wav\t0.0\t1.5\tDog\nb.wav\t\t\t\n")
    assert desed.read_strong(tsv) == {"a.wav": [(0.0, 1.5, "Dog")], "b.wav": []}
    for line, message in (("a.wav\tx\t1\tDog", "line 2"), ("a.wav\t2\t1\tDog", "line 2")):
        tsv.write_text("filename\tonset\toffset\tevent_label\n" + line + "\n")
        with pytest.raises(UserError, match=message):
            desed.read_strong(tsv)
    tsv.write_text("file,onset\n")
    with pytest.raises(UserError, match="columns filename"):
        desed.read_strong(tsv)


def test_desed_without_some_real_clips_goes_on_and_says_so(tmp_path, capsys):
    root = write_desed(tmp_path / "set", weak=4, synthetic=4, validation=4)
    (root / "audio/validation/validation/validation_0.wav").unlink()
    problem = tasks.load("DESED", Task(data=str(root), seeds=[1]))
    assert len(problem.pools["validation"]) == 3 and "3 of 4 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "test.json").write_text("{"), "not JSON"),
        (lambda root: (root / "test.json").write_text("{}"), "no files"),
        (lambda root: (root / "16000/test/test_0.wav").unlink(), "test_0.wav"),
        (lambda root: (root / "labelvocabulary.csv").write_text("idx,label\n0,60\n2,61\n"), "count from 0"),
        (lambda root: (root / "labelvocabulary.csv").write_text("idx,label\n0,60\n"), "lacks"),
        (
            lambda root: (root / "test.json").write_text('{"test_0.wav": [{"label": 60, "start": 5, "end": 1}]}'),
            "from 5.0 to 1.0 ms",
        ),
    ],
)
def test_broken_hear_data_is_refused(tmp_path, change, message):
    root = write_hear(tmp_path / "set", {"train": 1, "valid": 1, "test": 1}, seconds=1, events=1)
    change(root)
    with pytest.raises(UserError, match=message):
        tasks.load("DC16-T2", Task(data=str(root), seeds=[1]))


def test_unknown_tasks_modes_and_folders_are_named(tmp_path, checkpoint):
    with pytest.raises(UserError, match="DC16-T2"):
        tasks.load("DCASE", Task(data=str(tmp_path)))
    with pytest.raises(UserError, match="no such folder"):
        tasks.load("DESED", Task(data=str(tmp_path / "none")))
    with pytest.raises(UserError, match="modes"):
        tasks.run("DESED", Task(), "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv", modes=["linear"])


def test_audio_is_decoded_once_at_any_rate_and_again_when_it_changes(tmp_path):
    draw = np.random.default_rng(0)
    wave = draw.uniform(-0.5, 0.5, 16_000)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="PCM_16")
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    soundfile.write(tmp_path / "b.flac", np.stack([tone, tone], 1), 48_000)
    files = {"b": tmp_path / "b.flac", "a": tmp_path / "a.wav"}
    cache = tmp_path / "cache.h5"
    with ThreadPoolExecutor(3) as pool:
        many = list(pool.map(lambda _: Audio(files, cache), range(3)))
    assert many[0].ids == ["a", "b"] and many[0].samples.tolist() == [16_000, 16_000]
    np.testing.assert_array_equal(many[0][0], soundfile.read(tmp_path / "a.wav", dtype="int16")[0])
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(many[2][1][500:-500] / 32768, expected[500:-500], atol=2e-3)
    before = cache.stat().st_mtime_ns
    assert Audio(files, cache).ids == ["a", "b"] and cache.stat().st_mtime_ns == before
    soundfile.write(tmp_path / "a.wav", wave[:8_000], 16_000, subtype="PCM_16")
    assert Audio(files, cache).samples.tolist() == [8_000, 16_000]


# ------------------------------------------------------------------------------------------------- frozen heads


@pytest.mark.parametrize("frames", [1, 100, 250, 251, 300, 499, 500, 760, 3000])
def test_crops_cover_a_clip(frames):
    starts = frozen.crop_starts(frames, dense=False)
    assert starts[0] == 0 and all(b - a == 250 for a, b in itertools.pairwise(starts)) and starts[-1] + 250 >= frames
    dense = frozen.crop_starts(frames, dense=True)
    assert set(starts) <= set(dense) and all(s + 250 <= frames for s in set(dense) - set(starts))
    assert frames != 3000 or len(dense) == 23


def toy_crops(parts: int = 1, *, width: int = 6, n_classes: int = 3, count: int = 10, seed: int = 0):
    """Random features with labels, two runs over them, and the problem that they make."""
    draw = torch.Generator().manual_seed(seed)
    crops, pools = {}, {}
    for name in ("strong", "weak")[:parts]:
        features = torch.randn(count, 250, width, generator=draw)
        truth = (features[..., :n_classes] > 0.5).float().transpose(1, 2)
        weak = (truth.mean(2) > 0.3).float()
        clips, start = np.arange(count), np.zeros(count, int)
        labels = truth if name == "strong" else None
        crops[name] = frozen.Crops(clips, start, features.half(), labels, weak)
        columns = (np.zeros(0, int),) * 2 + (np.zeros(0),) * 2
        pools[name] = clip_set(
            [f"{name}{i}" for i in range(count)], None, ClassList.of("abc"), samples=np.full(count, 160_000),
            events=columns,
        )  # fmt: skip
    half = np.arange(count // 2)
    runs = []
    for k, seed in enumerate((1, 2)):
        train = tuple(Part(name, half + k * (count // 2)) for name in crops)
        runs.append(Run(str(seed), seed, train, Part("strong", half)))
    objective = "both" if parts == 2 else "strong"
    return crops, Problem("DESED", ClassList.of("abc"), pools, tuple(runs), objective, lambda _: {})


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize(("optimiser", "decay", "clip"), [("adam", 0.0, None), ("adamw", 0.1, 0.05), ("sgd", 0.0, 0.1)])
def test_heads_trained_side_by_side_equal_heads_trained_alone(head, optimiser, decay, clip):
    crops, problem = toy_crops(2)
    recipe = HeadRecipe(
        epochs=3, epoch_clips=12, batch_size=4, learning_rate=0.05, warmup_steps=2, optimiser=optimiser,
        weight_decay=decay, clip_gradient=clip,
    )  # fmt: skip
    both = frozen.train(crops, problem, recipe, lr=0.05, head=head, device=CPU)
    for i, run in enumerate(problem.runs):
        alone = frozen.train(crops, dataclasses.replace(problem, runs=(run,)), recipe, lr=0.05, head=head, device=CPU)
        for name, value in alone.named_parameters():
            mine = getattr(both, name)
            mine = mine[i] if mine.ndim == 3 else mine.view(2, -1)[i]
            torch.testing.assert_close(mine, value.view_as(mine), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize(("optimiser", "decay", "clip"), [("adam", 0.0, None), ("adamw", 0.1, 0.05), ("sgd", 0.0, 0.1)])
def test_rates_tried_side_by_side_equal_rates_tried_alone(head, optimiser, decay, clip):
    crops, problem = toy_crops(2)
    recipe = HeadRecipe(
        epochs=3,
        epoch_clips=10,
        batch_size=4,
        warmup_steps=1,
        optimiser=optimiser,
        weight_decay=decay,
        clip_gradient=clip,
    )
    rates = [0.2, 0.003, 0.05]
    grid = frozen.train_rates(crops, problem, recipe, rates=rates, head=head, device=CPU)
    for lr, heads in zip(rates, grid):
        alone = frozen.train(crops, problem, recipe, lr=lr, head=head, device=CPU)
        for name, value in alone.named_parameters():
            torch.testing.assert_close(heads.get_parameter(name), value, atol=1e-5, rtol=1e-5)
    moved = [(grid[0].frame_weight - one.frame_weight).abs().max() for one in grid[1:]]
    assert min(moved) > 1e-4, "rates have heads of their own"


def test_a_rate_that_diverges_leaves_the_others_alone():
    crops, problem = toy_crops()
    recipe = HeadRecipe(epochs=3, epoch_clips=10, batch_size=4, optimiser="sgd", warmup_steps=0)
    grid = frozen.train_rates(crops, problem, recipe, rates=[1e39, 0.05], head="linear", device=CPU)
    assert isinstance(grid[0], int) and 0 < grid[0] < 9
    alone = frozen.train(crops, problem, recipe, lr=0.05, head="linear", device=CPU)
    torch.testing.assert_close(grid[1].frame_weight, alone.frame_weight, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=f"non-finite loss of the heads at step {grid[0]}; lower"):
        frozen.train(crops, problem, recipe, lr=1e39, head="linear", device=CPU)


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_batched_heads_compute_what_a_model_computes(head):
    model = build_model("tiny", n_classes=3, head=head)
    _, problem = toy_crops(2)
    heads = frozen.Heads(problem, model.embed_dim, attention=head == "attention", init="default")
    features = torch.randn(2, 4, 250, model.embed_dim)
    labels = (torch.rand(2, 4, 3, 250) < 0.2).float()
    both = {"strong": 0.0, "both": 0.0}
    for i in range(2):
        frame, clip = heads.of_run(i, features[i])
        for layer, name in ((model.frame_head, "frame"), (model.clip_head, "clip")):
            layer.weight.data = getattr(heads, f"{name}_weight")[i].detach().T.contiguous()
            layer.bias.data = getattr(heads, f"{name}_bias").detach().view(2, -1)[i]
        wanted_frame, wanted_clip = model.classify(features[i], outputs="logits")
        torch.testing.assert_close(frame.transpose(1, 2), wanted_frame, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip, wanted_clip, rtol=1e-4, atol=1e-4)
        strong = torch.tensor([True, True, False, False])
        columns = (torch.zeros(4),) * 3
        batch = Batch([""] * 4, *columns, labels[i], labels[i].amax(2), None, strong)
        both["both"] += Objective("both")(wanted_frame, wanted_clip, batch, slice(0, 4))
        both["strong"] += Objective("strong")(wanted_frame[:2], wanted_clip[:2], batch[:2], slice(0, 2))
    halves, weak = [features[:, :2], features[:, 2:]], labels.amax(3)[:, 2:]
    for kind, of_weak in (("strong", None), ("both", weak)):
        found = losses([heads, heads], halves, labels[:, :2], of_weak)
        torch.testing.assert_close(found, both[kind].detach().expand(2), rtol=1e-5, atol=1e-6)


def test_heads_begin_at_the_log_odds_of_each_run():
    _, problem = toy_crops(2)
    heads = frozen.Heads(problem, 6, attention=True, init="prior")
    for bias, run in zip(heads.frame_bias.detach().view(2, -1), problem.runs):
        np.testing.assert_allclose(bias, problem.log_odds(run), rtol=1e-5)
    assert heads.clip_bias.abs().max() < 1  # attention has no classes to be rare


def test_heads_learn_and_predict_the_test_clips():
    crops, problem = toy_crops()
    recipe = HeadRecipe(epochs=60, epoch_clips=5, batch_size=5, learning_rate=0.1, warmup_steps=2)
    heads = frozen.train(crops, problem, recipe, lr=0.1, head="linear", device=CPU)
    found = frozen.predict(heads, crops, problem, device=CPU, batch_size=2)
    assert [sorted(one) for one in found] == [[f"strong{i}" for i in range(5)]] * 2
    for one in found:
        values = np.stack([one[f"strong{i}"] for i in range(5)])
        truth = crops["strong"].frame_labels[:5].transpose(1, 2).numpy()
        assert ((values > 0.5) == truth).mean() > 0.9


def test_a_batch_that_the_parts_do_not_divide_is_refused(sets):
    crops, problem = toy_crops(2)
    with pytest.raises(UserError, match="not a multiple of 2"):
        frozen.train(crops, problem, HeadRecipe(batch_size=5), lr=0.1, head="linear", device=CPU)
    with pytest.raises(UserError, match="not a multiple of 2"):
        transfer.loader_of(problem, problem.runs[0], TrainRecipe(batch_size=5))


CHANGES = {
    "epochs": 4, "epoch_clips": 16, "batch_size": 2, "learning_rate": 0.02, "optimiser": "sgd", "betas": (0.5, 0.9),
    "momentum": 0.5, "weight_decay": 0.5, "schedule": "exp_linear", "warmup_steps": 3, "min_learning_rate": 0.005,
    "clip_gradient": 0.01, "head_init": "normal", "random_crop": False,
}  # fmt: skip
"""A change of each key of a frozen recipe."""


@pytest.mark.parametrize("key", [key for key in CHANGES if key != "random_crop"])
def test_every_key_of_a_frozen_recipe_changes_the_heads(key):
    other = {"precision": "acts on a GPU only", "per_model": "is resolved before the training"}
    other["unfinished_warmup"] = "only allows what is refused otherwise"
    assert set(CHANGES) | set(other) == set(HeadRecipe.model_fields)
    crops, problem = toy_crops()
    base = HeadRecipe(**{**SHORT, "optimiser": "sgd"} if key == "momentum" else SHORT)
    weights = []
    for recipe in (base, base.model_copy(update={key: CHANGES[key]})):
        heads = frozen.train(crops, problem, recipe, lr=recipe.rate("tiny"), head="linear", device=CPU)
        weights.append(heads.frame_weight.detach())
    assert not torch.allclose(*weights, rtol=1e-3, atol=1e-5)


def test_head_init_of_each_mode_acts_on_that_mode(sets, checkpoint, tmp_path, monkeypatch):
    seen, real = {}, frozen.train

    def heads(crops, problem, recipe, **how):
        seen.update(frozen=recipe.head_init)
        return real(crops, problem, recipe, **how)

    monkeypatch.setattr(transfer, "train", lambda model, *_, **__: seen.update(finetune=model.frame_head.bias.clone()))
    monkeypatch.setattr(frozen, "train", heads)
    for one, other in (("normal", "prior"), ("prior", "normal")):
        recipes = {"frozen": HeadRecipe(**SHORT, head_init=one), "finetune": TrainRecipe(**SHORT, head_init=other)}
        block = Task(data=str(sets / "dcase"), seeds=[1], **recipes)
        tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv")
        assert seen["frozen"] == one and bool((seen["finetune"] == 0).all()) == (other == "normal")


def test_crops_of_files_have_the_features_and_labels_of_their_place(sets):
    """A crop's features are those of its 10 s only, and its labels are where its events are."""
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0)).eval()
    crops = frozen.compute(model, problem, QUICK["frozen"], device=CPU)["files"]
    pool = problem.pools["files"]
    assert crops.start[:5].tolist() == [0, 125, 250, 375, 500]
    row = 1
    wave = pool.waveform(0)[125 * 640 : 375 * 640].astype(np.float32) / 32768
    with torch.no_grad():
        wanted = model.features(model.frontend(torch.from_numpy(wave)[None]))[0]
    torch.testing.assert_close(crops.features[row].float(), wanted, atol=2e-3, rtol=2e-3)  # float16
    assert (crops.features[0].float() - wanted).abs().max() > 0.1, "the next crop has other features"
    fixed = frozen.compute(model, problem, HeadRecipe(**SHORT, random_crop=False), device=CPU)["files"]
    assert fixed.start[:4].tolist() == [0, 250, 500, 0]
    events = [(a, b, c) for a, b, c in pool.ground_truth()[pool.ids[0]] if a > 5.2 and b < 14.8]
    for onset, offset, label in events:
        middle = round(((onset + offset) / 2 - 5) * 25)
        assert crops.frame_labels[row, pool.classes.index(label), middle] == 1
    assert events


def test_fresh_crops_are_cut_and_encoded_anew_for_every_batch(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1, 2]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0)).eval()
    recipe = HeadRecipe(**SHORT, random_crop="fresh")
    fresh = frozen.FreshCrops(model, problem, recipe, device=CPU)
    features, frame_labels, _ = fresh.batch(3, 0)
    assert features.shape == (2, 4, 250, model.embed_dim) and not torch.equal(features[0], features[1])
    starts = set()
    for loaders, found, labels in zip(fresh.loaders, features, frame_labels):
        batch = loaders[0].batch(3)
        starts |= set(batch.starts.tolist())
        with torch.no_grad():
            torch.testing.assert_close(found, model.features(model.frontend(batch.waveform)))
        assert torch.equal(labels, batch.frame_labels)
    assert any(start % 125 for start in starts), "not on the grid of 5 s"
    assert not torch.equal(features, fresh.batch(4, 0)[0])

    crops = frozen.compute(model, problem, recipe, device=CPU)
    assert crops["files"].start[:3].tolist() == [0, 250, 500], "the test clips in slices of 10 s"
    one, again = (
        frozen.train(crops, problem, recipe, lr=0.01, head="linear", device=CPU, fresh=fresh).frame_weight
        for _ in range(2)
    )
    grid = frozen.train(crops, problem, recipe, lr=0.01, head="linear", device=CPU).frame_weight
    assert torch.equal(one, again) and not torch.allclose(one, grid, atol=1e-4)


@pytest.mark.parametrize("crop", [True, "fresh"])
def test_the_recipe_decides_whether_crops_are_fresh(sets, checkpoint, tmp_path, monkeypatch, crop):
    seen, real = [], frozen.train

    def heads(*given, fresh, **how):
        seen.append(fresh is not None)
        return real(*given, fresh=fresh, **how)

    monkeypatch.setattr(frozen, "train", heads)
    recipes = {"frozen": HeadRecipe(**SHORT, random_crop=crop), "finetune": TrainRecipe(**SHORT)}
    block = Task(data=str(sets / "dcase"), seeds=[1], **recipes)
    tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "o.csv", modes=["frozen"])
    assert seen == [crop == "fresh"]
    with pytest.raises(ValueError, match="random_crop"):
        TrainRecipe(random_crop="fresh")


def test_the_released_threshold_is_one_half_on_logits(sets):
    """A logit of 0.4 is above the probability 0.5, a logit of 0.6 is above both thresholds."""
    problem = {
        at: tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1], median_seconds=0.0, threshold=at))
        for at in (0.5, 1 / (1 + np.exp(-0.5)))
    }
    logits = np.full((250, 4), -5.0, np.float32)
    logits[50:100, 0], logits[150:200, 1] = 0.4, 0.6
    found = [one.score({"test_0.wav": 1 / (1 + np.exp(-logits))})["detected_events"] for one in problem.values()]
    assert found == [2.0, 1.0]


# ------------------------------------------------------------------------------------------------- complete runs


@pytest.mark.parametrize(
    ("task", "folder", "options", "runs", "epochs", "least"),
    [
        ("DESED", "desed", {"head": "attention", "seeds": [1, 2], "median_seconds": 0.28}, ["1", "2"], 30, 0.1),
        ("DC16-T2", "dcase", {"seeds": [1]}, ["1"], 30, 0.1),
        ("MAESTRO", "maestro", {"seeds": [1], "median_seconds": 0.15}, [f"fold0{f}" for f in range(5)], 1, 0.0),
    ],
)  # fmt: skip
def test_every_task_learns_in_both_modes(sets, checkpoint, tmp_path, task, folder, options, runs, epochs, least):
    """Heads on random features find most tones; untrained heads find 5 % of them at most."""
    length = dict(epoch_clips=16, batch_size=4, warmup_steps=4)
    heads = HeadRecipe(**length, epochs=100, learning_rate=0.1, random_crop=False)
    whole = TrainRecipe(**length, epochs=epochs, learning_rate=0.01)
    block = Task(data=str(sets / folder), frozen=heads, finetune=whole, **options)
    tasks.run(task, block, "tiny", checkpoint, checkpoint="step1", out_csv=tmp_path / "o.csv")
    rows = pd.read_csv(tmp_path / "o.csv", dtype={"seed": str})
    assert rows["seed"].tolist() == runs * 2
    assert rows["mode"].tolist() == ["frozen"] * len(runs) + ["finetune"] * len(runs)
    assert {"task": task, "model": "tiny", "checkpoint": "step1"}.items() <= rows.iloc[0].to_dict().items()
    value = rows.groupby("mode")["value"].mean()
    assert 0.3 < value["frozen"] <= 1 and least <= value["finetune"] <= 1
    assert not list(tmp_path.glob(".*")), "working files were left"


@pytest.mark.parametrize(
    ("task", "folder", "options", "runs"),
    [
        ("DESED", "desed", {"head": "attention", "seeds": [1, 2]}, ["1", "2"]),
        ("DC16-T2", "dcase", {"seeds": [1]}, ["1"]),
        ("MAESTRO", "maestro", {"seeds": [1]}, [f"fold0{f}" for f in range(5)]),
    ],
)
def test_a_constant_guess_is_scored_by_the_task_itself(sets, checkpoint, tmp_path, task, folder, options, runs):
    block = Task(data=str(sets / folder), frozen=HeadRecipe(**SHORT), **options)
    out = tmp_path / "o.csv"
    tasks.run(task, block, "tiny", checkpoint, checkpoint="untrained", out_csv=out, modes=["frozen", "constant"])
    rows = pd.read_csv(out, dtype={"seed": str})
    assert rows.groupby("mode")["seed"].apply(list).to_dict() == {"frozen": runs, "constant": runs}
    problem = tasks.load(task, block)
    for one, value in zip(problem.runs, rows.loc[rows["mode"] == "constant", "value"], strict=True):
        guess = problem.constant(one)
        part, pool = one.train[0], problem.pools[one.train[0].pool]
        train = pool.select(part.clips)
        frames = np.maximum(-(-train.samples // 640), 250).sum()
        _, label, amount = train.activity()
        share = np.bincount(label, amount, minlength=len(problem.classes)) / frames
        for values in guess.values():
            np.testing.assert_allclose(values, np.broadcast_to(share, values.shape), atol=1e-3)
        assert list(guess) == [problem.pools[one.test.pool].ids[i] for i in one.test.clips]
        assert value == pytest.approx(problem.score(guess)["value"], abs=1e-6)


def test_a_constant_guess_above_the_threshold_is_one_event_a_file_and_class(sets):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1], threshold=0.001))
    metrics = problem.score(problem.constant(problem.runs[0]))
    assert metrics["detected_events"] == 2 * len(CLASSES) and metrics["reference_events"] == 40


def test_the_same_run_twice_gives_the_same_bytes(sets, checkpoint, tmp_path):
    block = Task(data=str(sets / "dcase"), seeds=[1], **QUICK)
    for name in ("first.csv", "second.csv"):
        tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="step1", out_csv=tmp_path / name)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_frozen_leaves_the_encoder_alone_and_finetuning_does_not(sets, checkpoint, tmp_path):
    problem = tasks.load("DC16-T2", Task(data=str(sets / "dcase"), seeds=[1]))
    model = build_model("tiny", n_classes=4).init_weights(torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    frozen.compute(model, problem, QUICK["frozen"], device=CPU)
    assert all(torch.equal(before[name], value) for name, value in model.encoder.state_dict().items())
    recipe = TrainRecipe(**SHORT, layer_decay=0.5)
    transfer.train(model, problem, problem.runs[0], recipe, directory=tmp_path, device=CPU)
    moved = [name for name, value in model.encoder.named_parameters() if not torch.equal(before[name], value)]
    assert len(moved) > len(before) // 2


def test_finetuned_runs_of_an_interrupted_job_are_not_repeated(sets, checkpoint, tmp_path, monkeypatch):
    block = Task(data=str(sets / "dcase"), seeds=[1, 2], **QUICK)
    out = tmp_path / "o.csv"
    trained = []
    real = transfer.train

    def train(model, problem, run, *args, **options):
        if run.name == "2" and trained == ["1"]:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(run.name)
        return real(model, problem, run, *args, **options)

    monkeypatch.setattr(transfer, "train", train)
    arguments = {"checkpoint": "full", "out_csv": out, "modes": ["finetune"]}
    with pytest.raises(KeyboardInterrupt):
        tasks.run("DC16-T2", block, "tiny", checkpoint, **arguments)
    assert not out.exists()
    tasks.run("DC16-T2", block, "tiny", checkpoint, **arguments)
    assert trained == ["1", "killed", "2"]
    again = pd.read_csv(out)
    tasks.run("DC16-T2", block, "tiny", checkpoint, checkpoint="full", out_csv=tmp_path / "p.csv", modes=["finetune"])
    pd.testing.assert_frame_equal(again, pd.read_csv(tmp_path / "p.csv"))
    assert trained == ["1", "killed", "2", "1", "2"]
