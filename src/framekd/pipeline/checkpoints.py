"""Checkpoints that the pipeline does not train: published files in our own format, and weights drawn from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from framekd import checkpoints
from framekd.config import HeadRecipe
from framekd.data import ClipSet
from framekd.fetch import fetch
from framekd.jobs import CheckpointJob
from framekd.models import FrameModel, build_model
from framekd.train import torch_generator


def make_checkpoints(job: CheckpointJob, *, weights: Sequence[str]) -> None:
    """Write a checkpoint per model of `job` into the folders of `weights`, in the same order."""
    for name, path in zip(job.models, weights, strict=True):
        model = build_model(name, n_classes=1, sizes=job.sizes[name])
        source: dict[str, Any]
        if published := job.published.get(name):
            file = Path(job.downloads) / published.url.rsplit("/", 1)[-1]
            with address(published.url, job.served) as url:
                fetch(url, file, sha256=published.sha256)
            checkpoints.load_reference(model, checkpoints.read_weights(file), heads=False)
            source = {"url": published.url, "file": file.name}
        else:
            assert job.seed is not None
            model.init_weights(torch_generator(job.seed, "step1", name))
            source = {"seed": job.seed}
        note = provenance(None, **source)
        checkpoints.save_checkpoint(Path(path).parent, model, classes=["none"], provenance=note)


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
    model = build_model(spec["model"], n_classes=n_classes, sequence_model=sequence_model, sizes=spec["sizes"])
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
