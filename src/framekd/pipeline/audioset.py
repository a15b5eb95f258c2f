"""AudioSet's labels and audio, the embedded miniature in their place, and the gate before any training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from framekd import acquire as acquisition
from framekd.config import AudioSet, Miniature

BUILDERS = {
    "audioset": "build_audioset",
    "DESED": "build_desed",
    "DC16-T2": "build_dcase16",
    "MAESTRO": "build_maestro",
}


def build_miniature(part: str, block: Mapping[str, Any], *, threads: int, out: str) -> None:
    """Build one of the miniature's data sets into the folder of `out` (its summary.json)."""
    from framekd import miniature

    size, directory = Miniature.model_validate(block), Path(out).parent
    arguments: dict[str, dict[str, Any]] = {
        "audioset": {
            "n_strong_train": size.strong_train,
            "n_weak_only_train": size.weak_only_train,
            "n_eval": size.eval,
            "missing": size.missing,
            "broken": size.broken,
            "workers": threads,
        },
        "DESED": {f"n_{name}": count for name, count in size.desed.items()},
        "DC16-T2": {"n_files": size.dcase16_files},
        "MAESTRO": {"n_files": size.maestro_files, "n_folds": size.maestro_folds},
    }
    summary = getattr(miniature, BUILDERS[part])(directory, seed=size.seed, **arguments[part])
    print(json.dumps(summary, indent=1))


def get_labels(block: Mapping[str, Any], *, out: Mapping[str, str]) -> None:
    """Fetch the published label files, or take local copies."""
    audioset = AudioSet.model_validate(block)
    acquisition.fetch_labels(out, labels_url=audioset.labels_url, labels_dir=audioset.labels_dir)


def list_clips(labels: Mapping[str, str], block: Mapping[str, Any], *, out: str) -> None:
    """Write the table of wanted clips: their splits, and the shard of each."""
    audioset = AudioSet.model_validate(block)
    counts = acquisition.plan_clips(
        labels,
        out,
        weak=audioset.weak,
        weak_splits=audioset.weak_splits,
        expected_classes=audioset.expected_classes,
        shards=audioset.download.shards,
    )
    print(json.dumps(counts, indent=1))


def acquire(clips: str, shard: int, block: Mapping[str, Any], *, media: str | None, store: str, manifest: str) -> None:
    """Acquire the audio of one shard; `media` is a folder that a local server hands out in YouTube's place."""
    audioset = AudioSet.model_validate(block)
    with _served(media) as url:
        counts = acquisition.acquire_shard(
            clips,
            shard,
            store,
            manifest,
            folders=audioset.folders,
            hdf5=audioset.hdf5,
            encoding=audioset.encoding,
            download=audioset.download,
            url=url,
            progress=_tell,
        )
    print(json.dumps(counts))


@contextlib.contextmanager
def _served(media: str | None) -> Iterator[str | None]:
    """The address template of a local server for `media`; None where there is none to serve."""
    if media is None:
        yield None
        return
    from framekd.miniature import serve

    with serve(media) as server:
        yield server.url


def _tell(settled: int, total: int) -> None:
    if settled % 50 == 0 or settled == total:
        print(f"{settled} of {total} clips", flush=True)


def gate(manifests: Sequence[str], labels: Mapping[str, str], block: Mapping[str, Any], *, out: str) -> None:
    """Count what came, per split and class; stop here, with counts, if it is too little to train on."""
    audioset = AudioSet.model_validate(block)
    acquisition.check_coverage(manifests, labels, min_clips=audioset.min_clips, table=out)
