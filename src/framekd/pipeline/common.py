"""What several stages need: the store, the class lists, a device, generators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from framekd.config import LABEL_FILES, UserError
from framekd.labels import ClassList, strong_classes
from framekd.store import Store


def label_file(data: str | Path, name: str) -> Path:
    """Path of a published label file."""
    return Path(data) / "labels" / LABEL_FILES[name]


def open_store(data: str | Path) -> Store:
    """All shards of the store."""
    paths = sorted((Path(data) / "store").glob("*.h5"))
    if not paths:
        raise UserError(f"{data}/store: no shards; run snakemake {data}/coverage.tsv first")
    return Store(paths)


def classes_of(data: str | Path) -> tuple[ClassList, ClassList, ClassList]:
    """Strong classes of training, evaluation and both; their counts were checked when the clips were listed."""
    train, evaluation, names = (label_file(data, key) for key in ("train_strong", "eval_strong", "mid_to_display_name"))
    return strong_classes(train, evaluation, names, expected=None)


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def processes(gpus: int) -> int:
    """How many processes train a model together: one per GPU of the job that is there; one without any."""
    return max(1, min(gpus, torch.cuda.device_count()))


def provenance(start: str | Path | None, **values: Any) -> Mapping[str, Any]:
    """Where weights come from: kept in their spec.json."""
    return {"start": str(start) if start else None, "torch": torch.__version__, **values}
