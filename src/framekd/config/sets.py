"""Where the data of the downstream tasks come from, and the published numbers that they are compared with."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from framekd.config.base import Block, field


class Archive(Block):
    """A published file: fetched to `data_dir`/archives, or taken from `path`."""

    url: str | None = field(None, "address of the file itself (http, https or file)")
    path: str | None = field(None, "file on this machine, which is used where it lies and comes before the address")
    sha256: str | None = field(None, "expected SHA-256; null records what came")
    md5: str | None = field(None, "expected MD5, where that is what was published", pattern=r"^[0-9a-fA-F]{32}$")

    @model_validator(mode="after")
    def _named(self) -> Archive:
        if not self.path and not self.name:
            raise ValueError(f"url {self.url!r} is no address that ends in a file name; write {{url: https://…/FILE}}")
        return self

    @model_serializer(mode="wrap")
    def _only_given(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}

    @property
    def name(self) -> str:
        """File name at the end of the address, without what follows a question mark."""
        last = unquote(urlsplit(self.url or "").path).rsplit("/", 1)[-1]
        return last if re.fullmatch(r"\w[\w.+-]*", last) else ""


class HearData(Block):
    """Data of a task that HEAR prepared."""

    take: Literal["prepared", "original"] = field(
        "prepared", "HEAR's prepared archive, or the data set itself, to which HEAR's rule is applied here"
    )
    prepared: Archive = field(..., "HEAR's archive, at any sample rate")
    original: dict[str, Archive] = field({}, "archives of the data set itself")


class DesedData(Block):
    """Data of DESED: synthetic clips from their archive, real clips from folders or YouTube."""

    synthetic: Archive = field(..., "archive of the synthetic clips and their labels")
    lists: dict[str, Archive] = field(
        {}, "official lists of real clips: weak and validation, and public if it is scored"
    )
    folders: list[str] = field([], "folders with real clips, which are looked through before any download")
    download: bool = field(True, "fetch real clips that no folder has, as `audioset.download` says")

    @model_validator(mode="after")
    def _both(self) -> DesedData:
        if set(self.lists) - {"public"} != {"weak", "validation"}:
            raise ValueError("lists must have an entry for weak and one for validation, and may have one for public")
        return self


_ZENODO = "https://zenodo.org/record"
_ARCHIVE_ORG = "https://archive.org/download"
_DESED = "https://raw.githubusercontent.com/turpaultn/DESED/master/real/metadata"


def _dcase16() -> HearData:
    original = {
        "dev": ("dcase2016_task2_train_dev", "4e1b5e8887159193e8624dec801eb9e7"),
        "eval": ("dcase2016_task2_test_public", "ac98768b39a08fc0c6c2ddd15a981dd7"),
    }
    return HearData(
        prepared=Archive(url=f"{_ZENODO}/5887964/files/hear2021-dcase2016_task2-hear2021-full-48000.tar.gz"),
        original={k: Archive(url=f"{_ARCHIVE_ORG}/{n}/{n}.zip", md5=md5) for k, (n, md5) in original.items()},
    )


def _maestro() -> HearData:
    whole = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.zip"
    return HearData(
        prepared=Archive(url=f"{_ZENODO}/5887964/files/hear2021-maestro-v3.0.0-5h-48000.tar.gz"),
        original={"maestro": Archive(url=whole, md5="41941abdcd786c8066d532002e3b79b9")},
    )


def _desed() -> DesedData:
    return DesedData(
        synthetic=Archive(url=f"{_ZENODO}/6026841/files/dcase_synth.zip"),
        lists={
            "weak": Archive(url=f"{_DESED}/train/weak.tsv"),
            "validation": Archive(url=f"{_DESED}/validation/validation.tsv"),
        },
    )


class Fetch(Block):
    """What the folders of the paper's tasks are made from.

    A folder that you have filled is used as it is, and nothing is fetched for it.
    """

    DESED: DesedData | None = Field(
        default_factory=_desed, description="DESED's published archive and lists; null fetches nothing"
    )
    DC16_T2: HearData | None = Field(
        default_factory=_dcase16, alias="DC16-T2", description="archives of DCASE 2016 Task 2; null fetches nothing"
    )
    MAESTRO: HearData | None = Field(default_factory=_maestro, description="archives of MAESTRO; null fetches nothing")
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def of(self, task: str) -> HearData | DesedData | None:
        """What a task is made from; None if nothing is fetched for it."""
        return getattr(self, task.replace("-", "_"), None)


def published_counts() -> dict[str, dict[str, int | None] | None]:
    """Published numbers of each task: clips by split, classes, and seconds of every clip."""
    return {
        "DESED": {
            **{"weak": 1578, "synthetic": 10_000, "validation": 1168, "judging": 2500, "public": 692},
            "classes": 10,
        },
        "DC16-T2": {"train": 44, "valid": 14, "test": 14, "classes": 11, "seconds": 120},
        "MAESTRO": {**{f"fold{i:02d}": 37 for i in range(5)}, "classes": 88, "seconds": 120},
    }
