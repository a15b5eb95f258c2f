"""Training a model on one's own labels: the whole model, or new heads on the frozen transformer.

Events train the frame head. Clip labels train a head that pools the frames by attention, so that frames are learnt
too. Both kinds of training run in :func:`framekd.train.fit`: they can be stopped and continued, and are judged on
validation files. A frozen transformer's features are computed once.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from framekd.checkpoints import save_checkpoint
from framekd.config import HeadRecipe, TrainRecipe, UserError
from framekd.data import Batch, ClipSet, Loader, labelled, windows
from framekd.files import replacing, sha256_of
from framekd.inference import batch_logits
from framekd.labels import ClassList
from framekd.labels.tsv import Annotations
from framekd.metrics import median_filter
from framekd.models import FrameModel, build_model, switches
from framekd.recordings import fit_times
from framekd.scoring import clip_scores, event_scores
from framekd.tasks import frozen
from framekd.tasks.problem import Audio, Part, Problem, Run, frame_count, join_crops
from framekd.train import Fit, Objective, RunOptions, Validation, fit, numpy_generator, torch_generator
from framekd.units import CLIP_FRAMES, SAMPLE_RATE

MEDIAN_SECONDS = 0.48
FROZEN: dict[str, Any] = dict(epochs=100, learning_rate=1e-3, batch_size=32)
WHOLE: dict[str, Any] = dict(epochs=30, learning_rate=1e-4, batch_size=32, layer_decay=0.5)  # as DESED in Table II


@dataclass(frozen=True)
class Recordings:
    """Labelled files.

    Attributes:
        labels: of these files.
        files: {file name in the table: path}.
    """

    labels: Annotations
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Pool:
    """Decoded recordings with their labels, cut at the ends of the clips."""

    clips: ClipSet
    labels: Annotations

    @property
    def seconds(self) -> dict[str, float]:
        return dict(zip(self.clips.ids, self.clips.durations.tolist()))

    def crops(self) -> int:
        """Number of successive cuts of 10 s."""
        return int(np.maximum(-(-frame_count(self.clips.samples) // CLIP_FRAMES), 1).sum())


def recipe_for(pool: Pool, *, frozen: bool, **changes: Any) -> TrainRecipe:
    """The recipe of a training: each epoch shows as many cuts as the recordings have; `changes` that are not None."""
    given = (FROZEN if frozen else WHOLE) | {key: value for key, value in changes.items() if value is not None}
    recipe = TrainRecipe(**given, epoch_clips=pool.crops(), head_init="prior", precision="bf16")
    return recipe.model_copy(update={"warmup_steps": min(500, recipe.steps() // 10)})


def read_pool(recordings: Recordings, classes: ClassList, cache: Path) -> Pool:
    """Decode recordings into `cache`. UserError: one is empty, or an event begins after the end of its clip."""
    audio = Audio(recordings.files, cache)
    if empty := [name for name, n in zip(audio.ids, audio.samples.tolist()) if not n]:
        raise UserError(f"{len(empty)} of {len(audio)} files have no audio ({empty[0]})")
    seconds = dict(zip(audio.ids, (audio.samples / SAMPLE_RATE).tolist()))
    labels = fit_times(recordings.labels.select(audio.ids), seconds)
    kind: dict[str, Any] = {"events": labels.events} if labels.timed else {"clip_labels": labels.clip_labels}
    return Pool(labelled(audio.ids, audio, classes, **kind), labels)


def finetune(
    start: FrameModel,
    spec: Mapping[str, Any],
    train: Recordings,
    out: str | Path,
    *,
    valid: Recordings | None = None,
    frozen: bool = False,
    changes: Mapping[str, Any] | None = None,
    patience: int | None = 10,
    seed: int = 1,
    device: torch.device,
    options: RunOptions | None = None,
) -> Fit:
    """Train on labelled recordings and write a checkpoint.

    Args:
        start: gives the encoder.
        spec: its specification.
        train: gives the classes too, sorted by name.
        out: folder of the checkpoint. While the training runs it keeps its state, with which it can be continued, and
            the decoded audio. At the end history.jsonl and training.png are beside the checkpoint.
        valid: scored after each epoch; the weights of the lowest loss on them are kept. None: the last weights.
        frozen: train the heads alone.
        changes: values of the recipe other than those of :func:`recipe_for`.
        patience: validations without a lower loss after which the training ends; None is never.
        seed: of the new heads, the order of clips and the cuts.
        options: how it runs; None: with a progress bar.
    Raises:
        UserError: recordings that cannot be used.
        Stopped: a signal or the time limit; the state is saved.
    """
    out = Path(out)
    classes = ClassList.of(sorted(train.labels.counts()))
    work = out / ".audio"
    try:
        pool = read_pool(train, classes, work / "train.h5")
        held = None if valid is None else read_pool(valid, classes, work / "valid.h5")
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        with suppress(OSError):  # it holds the state of a training
            out.rmdir()
        raise
    recipe = recipe_for(pool, frozen=frozen, **(changes or {}))
    model = new_model(start, spec, pool, recipe, seed=seed).to(device)
    objective = Objective("strong" if train.labels.timed else "weak")
    learner: nn.Module = model
    loader: Loader | FeatureBatches
    batches: Callable[[], Iterator[Batch]] | None
    if frozen:
        learner, loader, batches = _frozen(model, pool, held, recipe, seed=seed, device=device)
    else:
        loader = Loader(pool.clips, recipe, seed=seed)
        batches = None if held is None else lambda: windows(held.clips, recipe.batch_size)
    validation = None
    if held is not None and batches is not None:
        validation = Validation(
            lambda trained: validate(trained, held, batches(), objective, device=device),
            every_epochs=1,
            select="best_loss",
            patience=patience,
        )
    source = origin(spec)
    tables = {"train": sha256_of(train.labels.path), "valid": sha256_of(valid.labels.path) if valid else None}

    def finish(result: Fit) -> None:
        about = {
            "start": source,
            "trained": "heads" if frozen else "all",
            "labels": {"table": str(train.labels.path), "sha256": tables["train"], "clips": len(pool.clips)},
            "seed": seed,
            "recipe": recipe.model_dump(mode="json"),
            "step": result.kept_step,
            "torch": torch.__version__,
            **result.provenance,
        }
        save_checkpoint(out, model, classes=classes.names, provenance=about)
        with replacing(out / "training.png") as aside:
            curves(result).savefig(aside, dpi=120)

    result = fit(
        learner,
        loader,
        recipe,
        lr=recipe.rate(model.name),
        seed=seed,
        objective=objective,
        directory=out,
        validation=validation,
        finish=finish,
        identity={"start": source, "frozen": frozen, **tables},
        options=options or RunOptions(device=device, save_minutes=2.0),
    )
    shutil.rmtree(work, ignore_errors=True)
    return result


def origin(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the weights that a training starts from: model, SHA-256, and the release with its licence."""
    about = spec.get("provenance") or {}
    release = {key: about[key] for key in ("release", "url", "licence") if about.get(key)}
    before = about.get("start")
    if not release and isinstance(before, Mapping):  # a model that was fine-tuned itself
        release = {key: before[key] for key in ("release", "url", "licence") if before.get(key)}
    sums = {"weights_sha256": spec["weights_sha256"]} if spec.get("weights_sha256") else {}
    return {"model": spec["model"], **sums, **release}


def new_model(start: FrameModel, spec: Mapping[str, Any], pool: Pool, recipe: HeadRecipe, *, seed: int) -> FrameModel:
    """The encoder of `start` with new heads, whose biases are the classes' log odds."""
    model = build_model(
        start.name,
        n_classes=len(pool.clips.classes),
        head="linear" if pool.labels.timed else "attention",
        sizes=start.sizes,
        front_end=switches(spec),
    )
    model.encoder.load_state_dict(start.encoder.state_dict())
    model.new_heads(generator=torch_generator(seed, "heads"))
    if recipe.head_init == "prior":
        model.frame_head.bias.data.copy_(torch.from_numpy(pool.clips.log_odds()))
    return model


def validate(
    model: Any, pool: Pool, batches: Iterator[Batch], objective: Objective, *, device: torch.device
) -> dict[str, float]:
    """Loss and scores on the whole of a pool's recordings: ``val/loss``, and ``val/psds1`` … or ``val/map`` …"""
    frames: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    clips: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    loss = count = 0.0
    for batch, [(frame_logits, clip_logits)] in batch_logits([model], batches, device=device):
        size = len(batch)
        loss += size * float(objective(frame_logits, clip_logits, batch.to(device), slice(0, size)))
        count += size
        for name, values, whole in zip(batch.ids, frame_logits.sigmoid().cpu(), clip_logits.cpu()):
            frames[name].append(values.T.numpy())
            clips[name].append(whole.numpy())
    names = list(pool.clips.classes.names)
    if pool.labels.timed:
        samples = dict(zip(pool.clips.ids, pool.clips.samples.tolist()))
        joined = ((name, join_crops(np.stack(parts), samples[name])) for name, parts in frames.items())
        scored = ((name, median_filter(values, MEDIAN_SECONDS)) for name, values in joined)
        overall = event_scores(scored, pool.labels, pool.seconds, names, threshold=0.5, facts={}).overall
    else:
        values = np.stack([np.max(parts, 0) for parts in clips.values()])
        overall = clip_scores(values, [pool.labels.clip_labels[name] for name in clips], names, facts={}).overall
    shown = {name: value for name, value in overall.items() if not name.endswith("of_chance")}
    return {"val/loss": loss / count} | {f"val/{name}": value for name, value in shown.items()}


def curves(result: Fit) -> Any:
    """Losses and validation scores over the steps; a line marks the step whose weights were kept."""
    from matplotlib.figure import Figure

    scores = [
        key
        for key in ("val/psds1", "val/event_f1", "val/segment_f1", "val/map", "val/accuracy")
        if any(key in line for line in result.history)
    ]
    figure = Figure(figsize=(7.0, 5.6 if scores else 3.2), layout="constrained")
    panels = figure.subplots(2 if scores else 1, 1, sharex=True, squeeze=False)[:, 0]
    for axes, keys, what in ((panels[0], ["train/loss", "val/loss"], "loss"), (panels[-1], scores, "validation score")):
        for key in keys:
            points = [(line["step"], line[key]) for line in result.history if key in line]
            if points:
                axes.plot(*zip(*points), marker="." if len(points) < 40 else None, label=key)
        axes.set_ylabel(what)
        axes.axvline(result.kept_step, color="tab:grey", linewidth=0.8, linestyle="--")
        axes.legend(fontsize=8)
        if not scores:
            break
    if scores:
        panels[-1].set_ylim(0, 1)
    panels[-1].set_xlabel(f"steps (dashed: the kept weights, step {result.kept_step})")
    return figure


# -- frozen transformer ----------------------------------------------------------------------------------------------


class HeadsOnly(nn.Module):
    """The heads of a model, trained on features in place of spectrograms; the encoder is no part of it."""

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.frame_head, self.clip_head, self.name = model.frame_head, model.clip_head, model.name
        self._whole = [model]  # in a list, so that its parameters are not this module's

    @property
    def encoder(self) -> nn.Module:
        return self._whole[0].encoder

    def frontend(self, features: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return features

    def forward(
        self,
        features: Float[Tensor, "batch 1 frames width"],
        *,
        generator: torch.Generator | None = None,
        part: int = 0,
        outputs: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._whole[0].classify(features.squeeze(1), outputs=outputs)


class FeatureBatches:
    """Training batches of computed features, in a random order per epoch; a function of the seed and the step."""

    def __init__(self, crops: frozen.Crops, pool: Pool, recipe: TrainRecipe, *, seed: int) -> None:
        self.crops, self.pool, self.recipe, self.seed = crops, pool, recipe, seed
        self.per_epoch = -(-recipe.epoch_clips // recipe.batch_size)
        self.steps = recipe.epochs * self.per_epoch

    def batch(self, rows: np.ndarray) -> Batch:
        """The features and labels of some crops; the features stand in place of the waveform."""
        source, index = self.crops, torch.from_numpy(rows)
        strong = source.frame_labels
        size = len(rows)
        return Batch(
            [self.pool.clips.ids[i] for i in source.clip[rows].tolist()],
            source.features[index.to(source.features.device)].float().unsqueeze(1),
            torch.from_numpy(source.start[rows]),
            torch.zeros(size, dtype=torch.int64),
            None if strong is None else strong[index],
            source.clip_labels[index],
            None,
            torch.full((size,), strong is not None),
        )

    def batches(
        self, begin: int, end: int, /, *, device: torch.device, rows: Callable[[int], slice]
    ) -> Iterator[Batch]:
        """Batches of steps `begin` to `end` - 1 on `device`. One process trains, so `rows` are all."""
        size, wanted, n = self.recipe.batch_size, self.recipe.epoch_clips, len(self.crops.clip)
        order, drawn = np.arange(0), -1
        for step in range(begin, end):
            epoch, within = divmod(step, self.per_epoch)
            if epoch != drawn:
                draw, drawn = numpy_generator(self.seed, "order", epoch), epoch
                order = np.concatenate([draw.permutation(n) for _ in range(-(-wanted // n))])[:wanted]
            yield self.batch(order[within * size : (within + 1) * size]).to(device)

    def in_order(self) -> Iterator[Batch]:
        """All crops once, for validation."""
        rows = np.arange(len(self.crops.clip))
        return (self.batch(rows[i : i + self.recipe.batch_size]) for i in range(0, len(rows), self.recipe.batch_size))


def _frozen(
    model: FrameModel, pool: Pool, held: Pool | None, recipe: TrainRecipe, *, seed: int, device: torch.device
) -> tuple[HeadsOnly, FeatureBatches, Callable[[], Iterator[Batch]] | None]:
    """What trains on a frozen transformer, its batches, and the batches of the validation."""
    pools = {"train": pool} | ({} if held is None else {"valid": held})
    parts = {name: Part(name, np.arange(len(p.clips))) for name, p in pools.items()}
    run = Run(str(seed), seed, (parts["train"],), parts.get("valid", parts["train"]))
    problem = Problem("own", pool.clips.classes, {n: p.clips for n, p in pools.items()}, (run,), "strong", lambda _: {})
    head = HeadRecipe(batch_size=recipe.batch_size, precision=recipe.precision)
    crops = frozen.compute(model, problem, head, device=device)
    loaders = {name: FeatureBatches(crops[name], p, recipe, seed=seed) for name, p in pools.items()}
    return HeadsOnly(model), loaders["train"], loaders["valid"].in_order if held is not None else None
