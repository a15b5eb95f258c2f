"""What is read and written around the audio: label files, the table of wanted clips, and the count of what came."""

from __future__ import annotations

import math
import shutil
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from framekd.config import LABEL_FILES, UserError
from framekd.fetch import check_sum, download
from framekd.files import replacing, sha256_of, write_json, write_text
from framekd.labels import (
    derive_classes,
    parse_clip_id,
    read_display_names,
    read_strong,
    read_weak_classes,
    read_weak_segments,
    strong_classes,
)
from framekd.manifest import Clip, State, coverage, read_manifest, write_clips
from framekd.units import CLIP_SECONDS

LARGEST_LABELS = 1 << 30
"""Bytes above which a label file is refused; the largest has 0.1 GB."""
STRONG = {"strong_train": "train_strong", "strong_eval": "eval_strong"}
WEAK = {"weak_balanced_train": "balanced_train", "weak_unbalanced_train": "unbalanced_train", "weak_eval": "eval"}


def fetch_labels(
    out: Mapping[str, str | Path],
    *,
    labels_url: Mapping[str, str],
    labels_dir: str | Path | None,
    sha256: Mapping[str, str] | None = None,
) -> dict[str, Path]:
    """Copy or download every label file; each is written whole or not at all.

    The source and SHA-256 of each file are written to sources.json beside the first.

    Args:
        out: path to write per name (the keys of ``LABEL_FILES``).
        labels_url: address per name (http, https or file); used where `labels_dir` is None.
        labels_dir: folder with local copies, named as published or as in the address.
        sha256: expected sum per name; a file without one is taken as it comes.
    Returns:
        The paths, per name.
    Raises:
        UserError: a file is missing, empty or cannot be fetched.
    """
    paths = {name: Path(path) for name, path in out.items()}
    record = {}
    for name, path in paths.items():
        url = labels_url.get(name, "")
        try:
            expected = (sha256 or {}).get(name)
            if labels_dir is None:
                download(url, path, sha256=expected, max_bytes=LARGEST_LABELS)
            else:
                source = _local_copy(Path(labels_dir), name, url)
                check_sum(source, expected, f"correct audioset.labels_sha256.{name}, or put the right file there")
                with replacing(path) as aside:
                    shutil.copyfile(source, aside)
        except (OSError, ValueError) as error:
            if labels_dir is not None and isinstance(error, UserError):
                raise
            raise UserError(
                f"audioset.labels_url.{name}: {url or 'no address'}: {error}; "
                "fetch the file by hand and write audioset: {labels_dir: FOLDER}"
            ) from None
        record[path.name] = {
            "source": url if labels_dir is None else "local copy",
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
    write_json(next(iter(paths.values())).parent / "sources.json", record)
    return paths


def _local_copy(directory: Path, name: str, url: str) -> Path:
    names = [LABEL_FILES[name], Path(urllib.parse.urlsplit(url).path).name]
    for candidate in names:
        if candidate and (directory / candidate).is_file():
            if not (directory / candidate).stat().st_size:
                raise UserError(f"{directory / candidate}: the file is empty; put the published file there")
            return directory / candidate
    raise UserError(f"{directory}: no {names[0]} in audioset.labels_dir; put it there or write labels_dir: null")


def shard_of(ytid: str, shards: int) -> int:
    """The shard of a video: a hash of its id, which does not depend on the other videos."""
    return zlib.crc32(ytid.encode()) % shards


def plan_clips(
    labels: Mapping[str, str | Path],
    out: str | Path,
    *,
    group: str,
    weak_splits: Sequence[str],
    expected_classes: tuple[int, int, int] | None,
    shards: int,
) -> dict[str, int]:
    """Write the table of wanted clips of one group, sorted by id.

    Every clip is in one group: "strong" (the clips of AudioSet Strong's training list), "eval" (other clips of its
    evaluation list) or "weak" (other clips of AudioSet Weak). The first two do not depend on the settings of Step 2.

    Args:
        labels: path of each label file, per name.
        out: the table: clip_id, ytid, start_ms, end_ms, splits (strong_train, weak_eval, …), shard.
        group: "strong", "eval" or "weak".
        weak_splits: training lists that the group "weak" consists of, beside the evaluation list.
        expected_classes: numbers of strong classes of training, evaluation and both; None accepts any.
        shards: number of shards of the group.
    Returns:
        Clips of the group per split.
    Raises:
        UserError: a label file is malformed, or does not have the expected classes.
    """
    strong_classes(
        labels["train_strong"], labels["eval_strong"], labels["mid_to_display_name"], expected=expected_classes
    )
    train, evaluation = (read_strong(labels[name]).clips for name in STRONG.values())
    strong = {clip: ("strong_train",) for clip in train}
    for clip in evaluation:
        strong[clip] = (*strong.get(clip, ()), "strong_eval")
    splits: dict[str, tuple[str, ...]] = {}
    if group != "weak":
        first = "strong_train" if group == "strong" else "strong_eval"
        splits = {clip: names for clip, names in strong.items() if names[0] == first}
    ends: dict[str, int] = {}
    for split, name in WEAK.items():
        if group == "weak" and name != "eval" and name not in weak_splits:
            continue
        segments = read_weak_segments(labels[name])
        for clip, end in zip(segments.clips, segments.end_ms.tolist()):
            if (clip not in strong) if group == "weak" else (clip in splits):
                splits[clip] = (*splits.get(clip, ()), split)
                ends[clip] = end
    write_clips(out, _clips(splits, ends, shards))
    return dict(Counter(split for names in splits.values() for split in names))


def _clips(splits: dict[str, tuple[str, ...]], ends: dict[str, int], shards: int) -> Iterator[Clip]:
    for clip in sorted(splits):
        ytid, start = parse_clip_id(clip)
        end = ends.get(clip, start + round(1000 * CLIP_SECONDS))
        yield Clip(clip, ytid, start, end, splits[clip], shard_of(ytid, shards))


def check_coverage(
    manifests: Iterable[str | Path],
    labels: Mapping[str, str | Path],
    *,
    splits: Sequence[str],
    min_share: float,
    table: str | Path | None,
) -> dict[str, dict[str, int]]:
    """Count the clips that came of some published lists, per state, and stop if there are too few.

    Args:
        manifests: of all shards that have clips of these lists.
        labels: path of each label file, per name.
        splits: the lists (strong_train, weak_eval, …).
        min_share: least share of the clips of each list.
        table: TSV of (split, class, state, clips) that is written in either case. Rows with an empty class count
            clips by state; rows with a class count the clips of that class that came.
    Returns:
        Clips per split and state.
    Raises:
        UserError: fewer clips of a list came than `min_share`, or none of a strong class. It names the counts.
    """
    entries = [entry for path in manifests for entry in read_manifest(path)]
    counted = coverage(entries)
    counts = {split: counted.get(split, {"wanted": 0, "ok": 0}) for split in splits}
    classes = _clips_per_class(labels, {e.clip_id for e in entries if e.state is State.OK}, splits)
    if table is not None:
        rows = [f"{split}\t\t{state}\t{n}\n" for split, states in counts.items() for state, n in states.items()]
        rows += [f"{split}\t{name}\tok\t{n}\n" for split, found in classes.items() for name, n in found.items()]
        write_text(table, "".join(["split\tclass\tstate\tclips\n", *rows]))
    _refuse_too_few(counts, classes, min_share=min_share)
    return counts


def _refuse_too_few(counts: dict[str, dict[str, int]], classes: dict[str, dict[str, int]], *, min_share: float) -> None:
    problems, advice = [], ["add audioset.folders or audioset.hdf5, or run the download again"]
    shares = []
    for split, states in counts.items():
        share = states["ok"] / max(1, states["wanted"])
        if share < min_share or not states["ok"]:
            lost = ", ".join(f"{n} {state}" for state, n in states.items() if state not in ("wanted", "ok"))
            problems.append(f"{split} has {states['ok']} of {states['wanted']} clips ({lost or 'no clips wanted'})")
            shares.append(share)
    if shares:
        problems[-1] += f", and audioset.min_share is {min_share:g}"
        if least := math.floor(100 * min(shares)) / 100:
            advice.append(f"to go on with these clips, write audioset: {{min_share: {least:g}}}")
    for split in STRONG:
        empty = [name for name, n in classes.get(split, {}).items() if n == 0]
        if empty:
            named = ", ".join(empty[:8]) + (", …" if len(empty) > 8 else "")
            problems.append(f"{split} has no clip for {len(empty)} of {len(classes[split])} classes ({named})")
            leave = "take a class that cannot be had out of the label files (audioset: {labels_dir: FOLDER"
            advice.append(f"{leave}, expected_classes: null}})")
    if problems:
        raise UserError(f"too few clips: {'; '.join(problems)}; {'; '.join(dict.fromkeys(advice))}")


def _clips_per_class(
    labels: Mapping[str, str | Path], available: set[str], splits: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Available clips per split and class name; the weak training lists together are "weak_train"."""
    names = read_display_names(labels["mid_to_display_name"])
    out: dict[str, dict[str, int]] = {}
    for split, name in STRONG.items():
        if split not in splits:
            continue
        strong = read_strong(labels[name])
        classes = derive_classes(strong.labels, names, source=str(labels[name]))
        found = np.array([clip in available for clip in strong.clips], bool)[strong.clip]
        pairs = np.unique(np.stack([strong.clip[found], classes.positions(strong.labels)[strong.label[found]]]), axis=1)
        n = np.bincount(pairs[1], minlength=len(classes)) if pairs.size else np.zeros(len(classes), int)
        out[split] = dict(zip(classes.names, n.tolist()))
    lists = [name for split, name in WEAK.items() if split in splits and name != "eval"]
    if lists:
        classes = read_weak_classes(labels["class_labels"])
        total = np.zeros(len(classes), np.int64)
        for name in lists:
            segments = read_weak_segments(labels[name])
            found = np.repeat([clip in available for clip in segments.clips], np.diff(segments.start))
            rows = classes.positions(segments.labels)[segments.label[found]]
            total += np.bincount(rows[rows >= 0], minlength=len(classes))
        out["weak_train"] = dict(zip(classes.names, total.tolist()))
    return out
