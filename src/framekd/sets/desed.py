"""DESED: synthetic clips from their archive, real clips from folders or YouTube, labels from the official lists."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import soundfile

from framekd.acquire import acquire_shard
from framekd.config import DesedData, Download, UserError
from framekd.files import replacing
from framekd.layouts.desed import AUDIO, METADATA, read_strong, read_weak
from framekd.layouts.folders import PUBLIC
from framekd.manifest import Clip, State, read_manifest, write_clips
from framekd.sets.archives import obtain
from framekd.store import Shard
from framekd.units import SAMPLE_RATE
from framekd.unpack import unpack

NO_PUBLIC_LIST = (
    "the public evaluation set of DESED has no list; write "
    "downstream: {fetch: {DESED: {lists: {public: {path: FILE}}}}}"
)
_NAME = re.compile(r"Y?(?P<ytid>[\w-]{11})_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)\.wav")
_SYNTHETIC = re.compile(
    r"(?:^|/)(audio/(train|validation)/synthetic21_\2/soundscapes/[^/]+\.wav"
    r"|metadata/(train|validation)/synthetic21_\3/soundscapes\.tsv)$"
)


def build(
    data: DesedData,
    folder: Path,
    downloads: Path,
    *,
    work: Path,
    download: Download,
    public: bool = False,
    url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, str]]:
    """Write the folder of DESED; returns what it was made from.

    Args:
        data: where its parts come from.
        folder: what is written.
        downloads: folder that keeps fetched files.
        work: folder that keeps the real clips and what became of each (weak.manifest.tsv, validation.manifest.tsv).
        download: settings of the download of real clips.
        public: whether the public evaluation set is part of it.
        url: address template in place of `download.url`.
        progress: called with (settled real clips, all real clips).
    Raises:
        UserError: a file cannot be had or is not what it should be, or the host of the real clips limits the rate.
    """
    sources = []
    if public and PUBLIC not in data.lists:
        raise UserError(NO_PUBLIC_LIST)
    wanted = {kind: archive for kind, archive in data.lists.items() if public or kind != PUBLIC}
    for kind, archive in wanted.items():
        path, about = obtain(archive, downloads)
        target = folder / METADATA[kind][0]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        sources.append(about)
    path, about = obtain(data.synthetic, downloads)
    if METADATA["synthetic"][0] not in _unpack_synthetic(path, folder):
        raise UserError(f"{path} has no synthetic21_train/soundscapes.tsv; check its address")
    settings = download.model_copy(update={"enabled": download.enabled and data.download})
    for kind in sorted(wanted, reverse=True):
        names = list((read_weak if kind == "weak" else read_strong)(folder / METADATA[kind][0]))
        _real_clips(kind, names, folder / AUDIO[kind][1], work, data.folders, settings, url, progress)
    return [*sources, about]


def _unpack_synthetic(archive: Path, folder: Path) -> list[str]:
    return unpack(archive, folder, lambda name: found[1] if (found := _SYNTHETIC.search(name)) else None)


def clip_of(name: str, split: str) -> Clip:
    """The clip of YouTube that a file of DESED is: Y, the id, begin and end in seconds."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{split}: {name!r} is no name of a clip (Yabcdefghijk_30.000_40.000.wav); correct the list")
    start, end = (round(1000 * float(found[key])) for key in ("start", "end"))
    return Clip(f"{found['ytid']}_{start}", found["ytid"], start, end, (split,), 0)


def _real_clips(
    kind: str,
    names: list[str],
    folder: Path,
    work: Path,
    folders: list[str],
    settings: Download,
    url: str | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Acquire the clips of a list, and write each that came to a file of its name."""
    files = {(clip := clip_of(name, kind)).clip_id: (name, clip) for name in names}
    table, store, manifest = (work / f"{kind}{suffix}" for suffix in (".tsv", ".h5", ".manifest.tsv"))
    work.mkdir(parents=True, exist_ok=True)
    write_clips(table, (clip for _, (_, clip) in sorted(files.items())))
    acquire_shard(
        *(table, 0, store, manifest),
        folders=folders,
        hdf5=[],
        encoding="pcm",
        download=settings,
        url=url,
        progress=progress,
    )
    folder.mkdir(parents=True, exist_ok=True)
    shard = Shard(store)
    rows = {clip_id: row for row, clip_id in enumerate(shard.ids)}
    for entry in read_manifest(manifest):
        if entry.state is State.OK:
            with replacing(folder / files[entry.clip_id][0]) as aside:
                soundfile.write(aside, shard[rows[entry.clip_id]], SAMPLE_RATE, subtype="PCM_16")
