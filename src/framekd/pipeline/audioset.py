"""AudioSet's labels and audio, the embedded miniature in their place, and the check before any training."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from framekd import acquire as acquisition
from framekd.audio import decode_stream, to_int16
from framekd.config import UserError
from framekd.files import replacing, write_text
from framekd.jobs import AcquireJob, ClipsJob, ExtraJob, GateJob, LabelsJob, MiniatureJob
from framekd.labels import derive_classes, read_display_names, read_strong
from framekd.labels.extra import PREFIX, find_audio, read_extra, with_own
from framekd.recordings import fit_times
from framekd.store import StoredClip, write_shard
from framekd.units import CLIP_SECONDS, FRAME_SAMPLES, SAMPLE_RATE


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


def store_extra(job: ExtraJob, *, inputs: Mapping[str, Any], out: Mapping[str, str]) -> None:
    """Store own recordings in pieces of 10 s, and write the events of each piece.

    Args:
        job: names the folder of the recordings.
        inputs: `labels`, the table of events; train_strong and mid_to_display_name.
        out: `audio` (a shard) and `events`.
    Raises:
        UserError: a recording is missing or cannot be decoded, events are out of range, or class names clash.
    """
    labels = read_extra(inputs["labels"])
    names = read_display_names(inputs["mid_to_display_name"])
    published = derive_classes(read_strong(inputs["train_strong"]).labels, names, source=inputs["train_strong"])
    classes = with_own(published, labels.counts(), names, source=labels.path)
    seconds: dict[str, float] = {}
    pieces = _pieces(find_audio(labels, job.audio), seconds)
    with replacing(out["audio"]) as aside:
        clips = write_shard(aside, pieces, encoding=job.encoding)
        events = fit_times(labels, seconds).events
        rows = ["filename\tonset\toffset\tevent_label\n"]
        for name, length in seconds.items():
            for piece in range(_count(length)):
                begin, clip = piece * CLIP_SECONDS, _piece_id(name, piece)
                inside = [(max(0, a - begin), min(CLIP_SECONDS, b - begin), label) for a, b, label in events[name]]
                there = [(a, b, label) for a, b, label in inside if a < b]
                rows += [f"{clip}\t{a:.3f}\t{b:.3f}\t{label}\n" for a, b, label in there] or [f"{clip}\t\t\t\n"]
        write_text(out["events"], "".join(rows))
    new, known = classes.names[len(published) :], sorted(set(labels.counts()) & set(published.names))
    print(f"{len(seconds)} recordings, {clips} clips; {len(new)} new classes ({', '.join(new) or 'none'})")
    print(f"classes of AudioSet Strong with further clips: {', '.join(known) or 'none'}")


def _pieces(files: Mapping[str, Path], seconds: dict[str, float]) -> Iterator[StoredClip]:
    """The recordings in pieces of 10 s, sorted by id; the length of each is entered in `seconds`."""
    for name in sorted(files, key=lambda name: f"{name}/"):
        samples = 0
        for piece, block in enumerate(decode_stream(files[name], block_seconds=CLIP_SECONDS)):
            if piece == 0 or len(block) >= FRAME_SAMPLES:
                yield StoredClip(_piece_id(name, piece), round(1000 * piece * CLIP_SECONDS), to_int16(block), "extra")
                samples += len(block)
        if not samples:
            raise UserError(f"{files[name]}: it holds no audio samples")
        seconds[name] = samples / SAMPLE_RATE


def _piece_id(name: str, piece: int) -> str:
    return f"{PREFIX}{name}/{piece:06d}"


def _count(seconds: float) -> int:
    return math.ceil(seconds / CLIP_SECONDS)


def gate(job: GateJob, *, inputs: Mapping[str, Any], out: str) -> None:
    """Count what was acquired, per split and class. UserError with counts if it is too little."""
    labels = {name: path for name, path in inputs.items() if name != "manifests"}
    acquisition.check_coverage(list(inputs["manifests"]), labels, splits=job.splits, min_share=job.min_share, table=out)
