"""A miniature AudioSet: label files in their published forms, and the videos that they refer to."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from framekd.audio import ffmpeg_path
from framekd.config import UserError
from framekd.files import replacing, write_json, write_text
from framekd.labels import STRONG_HEADER, clip_id, known_strong, known_weak
from framekd.miniature.scenes import (
    ANNOTATED_PAUSE,
    Library,
    Placed,
    Pool,
    Scene,
    clip_sizes,
    deal_classes,
    ground,
    lay,
    load_library,
    mix,
    take,
)
from framekd.units import CLIP_SECONDS, SAMPLE_RATE

# extension: (sample rate, encoder arguments). Fast settings: 20 s of audio take 0.2 s.
CODECS: dict[str, tuple[int, tuple[str, ...]]] = {
    "webm": (48_000, ("-c:a", "libopus", "-b:a", "64k", "-compression_level", "2")),
    "m4a": (44_100, ("-c:a", "aac", "-b:a", "96k", "-aac_coder", "fast")),
    "mp3": (44_100, ("-c:a", "libmp3lame", "-b:a", "96k", "-compression_level", "9")),
}
EXTENSIONS = tuple(CODECS)
DAMAGES = ("garbage", "headless", "cut")
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
SUBSETS = ("heard", "unheard")
"""Evaluation clips: new mixtures of sources that training clips have too, and of sources that they do not have."""
_SPLITS = ("strong", "weak", *SUBSETS)


@dataclass(frozen=True)
class Clip:
    """A clip of the miniature: a span of a video, its classes and events, and the state of its file."""

    ytid: str
    start: int  # s
    tail: float  # s of video after the clip
    split: str  # strong, weak (weak labels only), heard or unheard
    extension: str
    number: int  # its audio depends on (seed, number)
    classes: tuple[str, ...]
    state: str = "ok"  # "ok", "missing" or one of DAMAGES
    events: tuple[tuple[str, float, float], ...] = ()

    @property
    def id(self) -> str:
        return clip_id(self.ytid, self.start * 1000)

    @property
    def file(self) -> str:
        return f"{self.ytid}.{self.extension}"


def build_audioset(
    directory: str | Path,
    *,
    seed: int,
    n_strong_train: int,
    n_weak_only_train: int,
    n_heard: int,
    n_unheard: int,
    broken: float = 0.01,
    missing: float = 0.02,
    recordings_dir: str | Path = "miniature",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build the miniature AudioSet: ``meta/`` (label files), ``media/`` (videos, ``index.json``) and ``summary.json``.

    The result depends on the seed, the sizes and the recordings only. Videos last 12 to 25 s. A clip begins 1 to 12 s
    after the start of its video; sounds before it are not labelled.

    Evaluation clips are of two subsets, listed in ``meta/eval_subsets.tsv``: "heard" are new mixtures of the sources
    of the strong training clips, "unheard" are mixtures of sources that no training clip has.

    Args:
        missing: share of the videos that do not exist.
        broken: share of the videos that are damaged. Every class keeps at least one event in every split.
        workers: threads, each with an ffmpeg process; their number does not change the result.
        progress: called with (clips done, all clips).
    Returns:
        The content of summary.json.
    Raises:
        UserError: recordings are missing, or a split is too small to hold every class.
    """
    directory = Path(directory)
    library = load_library(recordings_dir)
    pools = clip_pools(library, seed)
    counts = {"strong": n_strong_train, "weak": n_weak_only_train, "heard": n_heard, "unheard": n_unheard}
    clips = plan_clips(library, counts, seed=seed)
    clips = lose_some(clips, seed=seed, missing=missing, broken=broken)
    media = directory / "media"
    shutil.rmtree(media, ignore_errors=True)
    done = 0
    built = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for clip in pool.map(lambda c: _build_clip(c, pools[c.split], media, seed), clips):
            built.append(clip)
            done += 1
            if progress is not None:
                progress(done, len(clips))
    write_meta(directory / "meta", built, library, Path(recordings_dir), seed=seed)
    write_text(
        media / "index.json", json.dumps({c.ytid: c.file for c in built if c.state != "missing"}, indent=0) + "\n"
    )
    summary = summarise(built, library, pools, seed=seed)
    write_json(directory / "summary.json", summary)
    return summary


def clip_pools(library: Library, seed: int) -> dict[str, Pool]:
    """The pool of each split of clips; evaluation takes vary little, whether their sources were heard or not."""
    pools = library.split(seed)
    heard = Pool(pools["strong"].events, pools["strong"].backgrounds)
    return {"strong": pools["strong"], "weak": pools["weak"], "heard": heard, "unheard": pools["eval"]}


def plan_clips(library: Library, counts: Mapping[str, int], *, seed: int) -> list[Clip]:
    """Plan the clips in a shuffled order: their classes, and their place in their video.

    Class frequencies are proportional to the fourth root of those of AudioSet Strong. Every class occurs at least three
    times in the strong training clips and in each subset of the evaluation clips.

    Args:
        counts: number of clips of each split.
    """
    rng = np.random.default_rng([seed, 2])
    weights = [library.frequency[label] ** 0.25 for label in library.evaluated]
    dealt: list[tuple[str, list[str]]] = []
    for split in _SPLITS:
        sizes = clip_sizes(counts[split], rng)
        if split != "weak" and sum(sizes) < len(library.evaluated):
            raise UserError(
                f"miniature: {counts[split]} {split} clips hold {sum(sizes)} events, too few for "
                f"{len(library.evaluated)} classes; ask for more clips"
            )
        dealt += [(split, labels) for labels in deal_classes(library.evaluated, weights, sizes, rng)]
    ids = _video_ids(len(dealt), rng)
    order = rng.permutation(len(dealt))
    clips = []
    for number, place in enumerate(order):
        split, labels = dealt[place]
        tail = round(float(rng.uniform(1.0, 3.0)), 2)
        extension = EXTENSIONS[int(rng.integers(len(EXTENSIONS)))]
        clips.append(Clip(ids[number], int(rng.integers(1, 13)), tail, split, extension, number, tuple(labels)))
    return clips


def _video_ids(n: int, rng: np.random.Generator) -> list[str]:
    """Distinct ids like those of YouTube; some begin with a hyphen and some contain underscores."""
    ids: dict[str, None] = {}
    while len(ids) < n:
        text = "".join(_ALPHABET[k] for k in rng.integers(len(_ALPHABET), size=11))
        kind = len(ids) % 20
        if kind == 3:
            text = "-" + text[1:]
        elif kind in (7, 11):
            text = text[: kind - 1] + "_" + text[kind:]
        ids[text] = None
    return list(ids)


def lose_some(clips: list[Clip], *, seed: int, missing: float, broken: float) -> list[Clip]:
    """Mark clips as missing or damaged: at least one if the share is above 0, but never the last event of a class."""
    rng = np.random.default_rng([seed, 3])
    left = Counter((c.split, label) for c in clips for label in set(c.classes))
    want = [max(1, round(share * len(clips))) if share > 0 else 0 for share in (missing, broken)]
    states = ["missing"] * want[0] + [DAMAGES[k % len(DAMAGES)] for k in range(want[1])]
    lost: dict[int, str] = {}
    for place in rng.permutation(len(clips)):
        if len(lost) == len(states):
            break
        keys = {(clips[place].split, label) for label in clips[place].classes}
        if all(left[key] > 1 for key in keys):
            lost[int(place)] = states[len(lost)]
            left.subtract(keys)
    return [replace(clip, state=lost.get(k, "ok")) for k, clip in enumerate(clips)]


def clip_scene(clip: Clip, pool: Pool, seed: int) -> tuple[Scene, list[tuple[str, float, float]]]:
    """The whole video of a clip, and the events of the clip in seconds from the start of the clip."""
    rng = np.random.default_rng([seed, 4, clip.number])
    end = clip.start + CLIP_SECONDS
    bed = ground(pool.backgrounds, round((end + clip.tail) * SAMPLE_RATE), rng)
    placed = lay(clip.classes, pool, rng, window=(clip.start + 0.1, end - 0.1))
    if clip.start >= 2:  # an unlabelled event before the clip shows cuts at a wrong place
        others = sorted(pool.events.keys() - set(clip.classes))
        label = others[rng.integers(len(others))]
        samples = take(pool, label, rng)[: round((clip.start - 0.5) * SAMPLE_RATE)]
        samples[-320:] *= np.linspace(1, 0, min(320, len(samples)), dtype=np.float32)
        placed.append(Placed(label, round((clip.start - 0.3) * SAMPLE_RATE) - len(samples), samples))
    scene = mix(placed, bed, rng, pause=ANNOTATED_PAUSE)
    inside = [
        (label, round(onset - clip.start, 3), round(min(offset, end) - clip.start, 3))
        for label, onset, offset in scene.events
        if onset >= clip.start and round(min(offset, end) - onset, 3) > 0
    ]
    return scene, inside


def _build_clip(clip: Clip, pool: Pool, media: Path, seed: int) -> Clip:
    scene, events = clip_scene(clip, pool, seed)
    rng = np.random.default_rng([seed, 5, clip.number])
    balance = float(rng.uniform(-0.4, 0.4))
    if clip.state != "missing":
        write_media(media / clip.file, scene.samples, balance=balance)
        if clip.state != "ok":
            damage(media / clip.file, clip.state, rng)
    return replace(clip, events=tuple(events))


def write_meta(directory: Path, clips: Sequence[Clip], library: Library, recordings_dir: Path, *, seed: int) -> None:
    """Write the label files with their published names and forms.

    The weak labels of a clip are the classes of its events that are among the 527 of AudioSet. A fifth of the strong
    training clips are in the balanced list; all other training clips are in the unbalanced list.
    """
    names = dict(zip(known_strong_names().values(), known_strong_names()))
    missing = [label for label, mid in library.mids.items() if names.get(label) != mid]
    if missing:
        raise UserError(f"labels/classes.csv: {missing[0]!r} has another id in AudioSet Strong; correct the file")
    strong = [c for c in clips if c.split == "strong"]
    of = {split: [c for c in clips if c.split == split] for split in _SPLITS}
    balanced = set(np.random.default_rng([seed, 6]).permutation(len(strong))[: -(-len(strong) // 5)].tolist())
    few = [c for k, c in enumerate(strong) if k in balanced]
    many = sorted([c for k, c in enumerate(strong) if k not in balanced] + of["weak"], key=lambda c: c.number)
    _write_strong(directory / "audioset_train_strong.tsv", of["strong"], library)
    evaluated = sorted((c for split in SUBSETS for c in of[split]), key=lambda c: c.number)
    _write_strong(directory / "audioset_eval_strong.tsv", evaluated, library)
    subsets = [f"{c.id}\t{c.split}" for c in evaluated]
    write_text(directory / "eval_subsets.tsv", "\n".join(["clip_id\tsubset", *subsets]) + "\n")
    _write_segments(directory / "balanced_train_segments.csv", few, library)
    _write_segments(directory / "unbalanced_train_segments.csv", many, library)
    _write_segments(directory / "eval_segments.csv", evaluated, library)
    weak = known_weak()
    # As published: every display name in quotes.
    rows = [f'{k},{m},"{n}"\n' for k, (m, n) in enumerate(zip(weak.mids, weak.names))]
    write_text(directory / "class_labels_indices.csv", "".join(["index,mid,display_name\n", *rows]))
    pairs = sorted(known_strong_names().items())
    write_text(directory / "mid_to_display_name.tsv", "".join(f"{mid}\t{name}\n" for mid, name in pairs))
    shutil.copyfile(recordings_dir / "labels" / "ontology.json", directory / "ontology.json")


def known_strong_names() -> dict[str, str]:
    """{mid: display name} of the 456 strong classes."""
    train, evaluated, _ = known_strong()
    return dict(zip(train.mids, train.names)) | dict(zip(evaluated.mids, evaluated.names))


def _write_strong(path: Path, clips: Iterable[Clip], library: Library) -> None:
    lines = ["\t".join(STRONG_HEADER)]
    for clip in clips:
        lines += [f"{clip.id}\t{onset}\t{offset}\t{library.mids[label]}" for label, onset, offset in clip.events]
    write_text(path, "\n".join(lines) + "\n")


def _write_segments(path: Path, clips: Sequence[Clip], library: Library) -> None:
    weak = known_weak()
    rows, seen, positives = [], set(), 0
    for clip in clips:
        mids = sorted({library.mids[label] for label, _, _ in clip.events} & set(weak.mids))
        seen.update(mids)
        positives += len(mids)
        rows.append(f'{clip.ytid}, {clip.start:.3f}, {clip.start + CLIP_SECONDS:.3f}, "{",".join(mids)}"\n')
    head = [
        "# Segments csv of the miniature, in the form of AudioSet's\n",
        f"# num_ytids={len(clips)}, num_segs={len(clips)}, num_unique_labels={len(seen)}, "
        f"num_positive_labels={positives}\n",
        "# YTID, start_seconds, end_seconds, positive_labels\n",
    ]
    write_text(path, "".join(head + rows))


def summarise(clips: Sequence[Clip], library: Library, pools: dict[str, Pool], *, seed: int) -> dict[str, Any]:
    """Count clips, events and sources.

    Raises:
        UserError: a class has no event in a split, or a source is in training and evaluation clips.
    """
    shared = pools["unheard"].sources() & (pools["strong"].sources() | pools["weak"].sources())
    if shared:
        raise UserError(f"miniature: source {sorted(shared)[0]} is in training and evaluation clips")
    counts: dict[str, dict[str, int]] = {}
    for split in _SPLITS:
        heard = Counter(label for c in clips if c.split == split and c.state == "ok" for label, _, _ in c.events)
        counts[split] = {label: heard[label] for label in library.evaluated}
    for split in ("strong", *SUBSETS):
        empty = [label for label, n in counts[split].items() if n == 0]
        if empty:
            raise UserError(f"miniature: no {split} clip has an event of {', '.join(empty)}; ask for more clips")
    return {
        "seed": seed,
        "clips": dict(Counter(c.split for c in clips)),
        "classes": len(library.evaluated),
        "events": counts,
        "eval_subsets": {split: sorted(c.id for c in clips if c.split == split) for split in SUBSETS},
        "sources": {split: len(pool.sources()) for split, pool in pools.items()},
        "media": dict(sorted(Counter(c.extension for c in clips if c.state != "missing").items())),
        "missing": sorted(c.id for c in clips if c.state == "missing"),
        "broken": {c.id: c.state for c in clips if c.state in DAMAGES},
    }


def write_media(path: Path, samples: Float[np.ndarray, " samples"], *, balance: float = 0.0) -> None:
    """Encode mono audio at 16 kHz as stereo, in the format given by the extension of `path`.

    The channels are ``1 + balance`` (left) and ``1 - balance`` (right) times the signal, so their mean is the signal.
    The bytes depend only on the arguments and the version of ffmpeg.

    Raises:
        RuntimeError: ffmpeg failed; the message has its last line.
    """
    rate, codec = CODECS[path.suffix[1:]]
    data = np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes()
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1"]
    command += ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "pipe:0"]
    command += ["-af", f"aresample={rate},pan=stereo|c0={1 + balance:.4f}*c0|c1={1 - balance:.4f}*c0"]
    command += [*codec, "-threads", "1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1"]
    with replacing(path) as aside:
        done = subprocess.run([*command, f"file:{aside}"], input=data, capture_output=True)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise RuntimeError(f"{path}: ffmpeg could not encode it ({lines[-1]})")


def damage(path: Path, kind: str, rng: np.random.Generator) -> None:
    """Damage a media file so that its clip cannot be decoded.

    ``garbage``: random bytes; ``headless``: without the first half, which has the headers; ``cut``: the first tenth.
    """
    data = path.read_bytes()
    if kind == "garbage":
        data = rng.bytes(len(data) // 2)
    elif kind == "headless":
        # mp3 has no header, so the remaining bytes are reversed.
        data = bytes(np.frombuffer(data[len(data) // 2 :], np.uint8)[::-1])
    elif kind == "cut":
        data = data[: max(64, len(data) // 10)]
    else:
        raise ValueError(f"no damage called {kind!r}; write one of {', '.join(DAMAGES)}")
    path.write_bytes(data)
