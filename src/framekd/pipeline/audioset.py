"""AudioSet's labels and audio, the embedded miniature in their place, and the check before any training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from framekd import acquire as acquisition
from framekd.jobs import AcquireJob, ClipsJob, GateJob, LabelsJob, MiniatureJob


def build_miniature(job: MiniatureJob, *, summary: str, threads: int) -> None:
    """Build one of the miniature's data sets into the folder of `summary`."""
    from framekd import miniature

    builders: dict[str, Callable[..., Any]] = {
        "audioset": partial(miniature.build_audioset, workers=threads),
        "DESED": miniature.build_desed,
        "DC16-T2": miniature.build_dcase16,
        "MAESTRO": miniature.build_maestro,
    }
    made = builders[job.part](Path(summary).parent, seed=job.seed, **job.counts)
    print(json.dumps(made, indent=1))


def get_labels(job: LabelsJob, *, out: Mapping[str, str]) -> None:
    """Fetch the published label files, or copy local ones, to the paths in `out`."""
    acquisition.fetch_labels(out, labels_url=job.urls, labels_dir=job.directory, sha256=job.sha256)


def list_clips(job: ClipsJob, *, labels: Mapping[str, str], out: str) -> None:
    """Write the table of wanted clips of one group: their splits, and the shard of each."""
    counts = acquisition.plan_clips(
        labels,
        out,
        group=job.group,
        weak_splits=job.weak_splits,
        expected_classes=job.expected_classes,
        shards=job.shards,
    )
    print(json.dumps(counts, indent=1))


def acquire(job: AcquireJob, *, clips: str, store: str, manifest: str) -> None:
    """Acquire the audio of one shard of `clips`."""
    with _served(job.media) as url:
        counts = acquisition.acquire_shard(
            clips,
            job.shard,
            store,
            manifest,
            folders=job.folders,
            hdf5=job.hdf5,
            encoding=job.encoding,
            download=job.download,
            url=url,
            progress=_print_progress,
        )
    print(json.dumps(counts))


@contextlib.contextmanager
def _served(media: str | None) -> Iterator[str | None]:
    """Serve the folder `media` locally; yields the address template of its clips, None without a folder."""
    if media is None:
        yield None
        return
    from framekd.miniature import serve

    with serve(media) as server:
        yield server.url


def _print_progress(settled: int, total: int) -> None:
    if settled % 50 == 0 or settled == total:
        print(f"{settled} of {total} clips", flush=True)


def gate(job: GateJob, *, inputs: Mapping[str, Any], out: str) -> None:
    """Count what was acquired, per split and class. UserError with counts if it is too little."""
    labels = {name: path for name, path in inputs.items() if name != "manifests"}
    acquisition.check_coverage(list(inputs["manifests"]), labels, splits=job.splits, min_share=job.min_share, table=out)
