"""Checkpoints that the pipeline does not train: published files in our own format, and weights drawn from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from framekd import checkpoints, releases
from framekd.config import HeadRecipe, UserError
from framekd.data import ClipSet
from framekd.jobs import CheckpointJob
from framekd.models import FrameModel, build_model, switches
from framekd.models.m2d import M2d
from framekd.models.mel import M2D_NORM_STATS
from framekd.published import NO_CLASSES, fetched, from_authors
from framekd.train import torch_generator

VARIANTS = {"step1": "ssl", "step2": "weak", "step3": "strong"}
"""Step → the variant of the authors' files that holds its weights."""


def make_checkpoints(job: CheckpointJob, *, weights: Sequence[str]) -> None:
    """Write a checkpoint per model of `job` into the folders of `weights`, in the same order.

    A published Step 2 file keeps its clip head, if it has one of the 527 weak classes; no other head is kept.
    """
    for name, path in zip(job.models, weights, strict=True):
        switched = dict(job.front_ends[name])
        stats = switched.pop("norm_stats", "fixed")
        clip_classes: Sequence[str] = NO_CLASSES
        classes: Sequence[str] = NO_CLASSES
        source: dict[str, Any]
        if published := job.published.get(name):
            file = Path(job.downloads) / published.url.rsplit("/", 1)[-1]
            with address(releases.mirrored(published.url), job.served) as url:
                state = fetched(url, file, checkpoints.read_weights, sha256=published.sha256)
            try:
                found = from_authors(name, state, VARIANTS[job.step], sizes=job.sizes[name], front_end=switched)
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
            model, classes, clip_classes = found.model, found.classes, found.clip_classes
            source = {"url": published.url, "file": file.name}
            source |= {"clip_head": found.clip_head} if job.step != "step1" else {}
            source |= use_statistics(model, stats, file.name)
        else:
            assert job.seed is not None
            model = build_model(name, n_classes=1, sizes=job.sizes[name], front_end=switched)
            model.init_weights(torch_generator(job.seed, "step1", name))
            source = {"seed": job.seed}
        note = provenance(None, **source)
        checkpoints.save_checkpoint(
            Path(path).parent, model, classes=classes, clip_classes=clip_classes, provenance=note
        )


def use_statistics(model: FrameModel, which: str, file: str) -> dict[str, str]:
    """Let M2D's front end use the statistics in its weights, if `which` is "file"; other models have none.

    Returns:
        An entry `warning` for the provenance, which is printed too, if the weights of `file` have other statistics than
        the authors' code uses.
    """
    if not isinstance(model.encoder, M2d):
        return {}
    if which == "file":
        model.encoder.front_end.switch({"norm_stats": model.encoder.norm_stats.tolist()})
    other = model.encoder.other_statistics()
    if other is None:
        return {}
    theirs, fixed = (f"({mean:g}, {std:g})" for mean, std in (other, M2D_NORM_STATS))
    used = (
        f"the front end uses the file's; write front_ends: {{m2d_norm_stats: fixed}} for {fixed}"
        if which == "file"
        else f"the front end uses {fixed}; write front_ends: {{m2d_norm_stats: file}} for the file's"
    )
    warning = f"{file}: M2D's norm_stats are {theirs}, but its authors' code always uses {fixed}; {used}"
    print(f"framekd: warning: {warning}", flush=True)
    return {"warning": warning}


@contextlib.contextmanager
def address(url: str, folder: str | None) -> Iterator[str]:
    """Yield `url`; where it has a ``{port}``, a local server publishes `folder` meanwhile, and that is its port."""
    if folder is None or "{port}" not in url:
        yield url
        return
    from framekd.miniature import serve

    with serve(folder) as server:
        yield url.replace("{port}", str(server.port))


def start_from(
    directory: str | Path,
    clips: ClipSet,
    recipe: HeadRecipe,
    *,
    generator: torch.Generator,
    sequence_model: str | None = None,
) -> FrameModel:
    """The encoder of a checkpoint with new heads for the classes of `clips`, and a new BiGRU where asked for.

    Args:
        directory: folder of the checkpoint.
        clips: give the classes, and their log odds for ``head_init: prior``.
        recipe: `head_init` is used.
        generator: draws the new weights.
        sequence_model: None or "bigru".
    """
    spec = checkpoints.read_spec(directory)
    n_classes = len(clips.classes)
    model = build_model(
        spec["model"],
        n_classes=n_classes,
        sequence_model=sequence_model,
        sizes=spec["sizes"],
        front_end=switches(spec),
    )
    model.init_sequence_model(generator)
    model.new_heads(generator=generator, std=0.01 if recipe.head_init == "normal" else None)
    if recipe.head_init == "prior":
        for head in (model.frame_head, model.clip_head):
            head.bias.data.copy_(torch.from_numpy(clips.log_odds()))
    checkpoints.load_encoder(model, directory)
    return model


def provenance(start: str | Path | None, **values: Any) -> Mapping[str, Any]:
    """Where weights come from: kept in their spec.json."""
    return {"start": str(start) if start else None, "torch": torch.__version__, **values}
