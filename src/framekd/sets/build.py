"""Making the folder of a downstream task: beside its place, compared with the published numbers, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from framekd.config import DesedData, Download, HearData, UserError
from framekd.files import sync_folder, write_json
from framekd.layouts import MARK, by_hand
from framekd.sets import desed, hear
from framekd.sets.count import Counted, compare, count


def make(
    task: str,
    data: HearData | DesedData,
    folder: str | Path,
    *,
    downloads: str | Path,
    work: str | Path,
    wanted: Mapping[str, int | None],
    min_share: float,
    download: Download,
    public: bool = False,
    url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Counted, list[dict[str, str]]]:
    """Make the folder of a task of the paper. The same files give the same bytes.

    Args:
        task: "DESED", "DC16-T2" or "MAESTRO".
        data: what it is made from.
        folder: what is made; one that the pipeline made earlier is replaced.
        downloads: folder that keeps fetched files.
        work: folder that keeps real clips of DESED.
        wanted, min_share: see :func:`framekd.sets.count.compare`.
        public, download, url, progress: of DESED's real clips, see :func:`framekd.sets.desed.build`.
    Returns:
        What it has, and what it was made from.
    Raises:
        UserError: somebody else filled the folder, a file cannot be had, or the data differ from the published ones.
            Nothing is left but fetched files.
    """
    folder, downloads = Path(folder).resolve(), Path(downloads)  # a link to another disk stays one
    if by_hand(folder):
        raise UserError(f"{folder} is not a folder that this pipeline made; remove it, or write fetch: null")
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if isinstance(data, HearData):
            sources = hear.build(task, data, aside, downloads)
        else:
            more: dict[str, Any] = dict(public=public, download=download, url=url, progress=progress)
            sources = desed.build(data, aside, downloads, work=Path(work), **more)
        found = count(task, aside, seconds=wanted.get("seconds"), public=public)
        try:
            compare(task, aside, found, wanted, min_share)
        except UserError as error:
            raise UserError(str(error).replace(str(aside), _names(task, sources))) from None
        write_json(aside / MARK, {"task": task, "sources": sources})
        _replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found, sources


def _names(task: str, sources: list[dict[str, Any]]) -> str:
    return f"{task} ({', '.join(about['name'] for about in sources)})"


def _replace(aside: Path, folder: Path) -> None:
    """Rename `aside` to `folder`, whose former content is removed."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
