"""A miniature AudioSet: the label files as they are published, and the videos they speak of."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framekd.config import UserError
from framekd.labels import STRONG_HEADER, clip_id, known_strong, known_weak
from framekd.miniature.media import DAMAGES, EXTENSIONS, damage, write_media
from framekd.miniature.recordings import SAMPLE_RATE, Library, Pool, load_library
from framekd.miniature.scenes import Placed, Scene, clip_sizes, deal_classes, ground, lay, mix, take

CLIP_SECONDS = 10.0
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_SPLITS = ("strong", "weak", "eval")


@dataclass(frozen=True)
class Clip:
    """A clip of the miniature: a span of a video, the classes that sound in it, and what became of its file."""

    ytid: str
    start: int  # s
    tail: float  # s of video after the clip
    split: str  # strong, weak (weak labels only) or eval
    extension: str
    number: int  # of the clip: its audio depends on (seed, number)
    classes: tuple[str, ...]
    state: str = "ok"  # ok, missing or a damage
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
    n_eval: int,
    broken: float = 0.01,
    missing: float = 0.02,
    recordings_dir: str | Path = "miniature",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build the miniature AudioSet: ``meta/`` (label files), ``media/`` (videos, ``index.json``) and ``summary.json``.

    A pure function of the seed, the sizes and the recordings: a clip's audio depends on (seed, its number) alone, so
    `workers` (threads; each has an ffmpeg) changes nothing. Videos last 12 to 25 s; a clip begins 1 to 12 s into its
    own, and what sounds before it is not in its labels. A share `missing` of the videos does not exist and a share
    `broken` is damaged, never so that a class loses its last event in a split.

    Returns the content of summary.json. `progress` is told (clips done, clips in all).
    Raises:
        UserError: recordings are missing, or a split is too small to hold every class.
    """
    directory = Path(directory)
    library = load_library(recordings_dir)
    pools = library.split(seed)
    clips = plan_clips(library, seed=seed, strong=n_strong_train, weak=n_weak_only_train, eval=n_eval)
    clips = lose_some(clips, seed=seed, missing=missing, broken=broken)
    media = directory / "media"
    shutil.rmtree(media, ignore_errors=True)
    media.mkdir(parents=True)
    done = 0
    built = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for clip in pool.map(lambda c: _build_clip(c, pools[c.split], media, seed), clips):
            built.append(clip)
            done += 1
            if progress is not None:
                progress(done, len(clips))
    write_meta(directory / "meta", built, library, Path(recordings_dir), seed=seed)
    _write(media / "index.json", json.dumps({c.ytid: c.file for c in built if c.state != "missing"}, indent=0) + "\n")
    summary = summarise(built, library, pools, seed=seed)
    _write(directory / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def plan_clips(library: Library, *, seed: int, strong: int, weak: int, eval: int) -> list[Clip]:
    """Which classes sound in which clip, and where in which video: everything but the audio, in a shuffled order.

    Class frequencies follow the square root of AudioSet Strong's; every class occurs at least three times in the strong
    training clips and in the evaluation clips.
    """
    rng = np.random.default_rng([seed, 2])
    counts = {"strong": strong, "weak": weak, "eval": eval}
    weights = [float(np.sqrt(library.frequency[label])) for label in library.classes]
    dealt: list[tuple[str, list[str]]] = []
    for split in _SPLITS:
        sizes = clip_sizes(counts[split], rng)
        if split != "weak" and sum(sizes) < len(library.classes):
            raise UserError(
                f"miniature: {counts[split]} {split} clips hold {sum(sizes)} events, too few for "
                f"{len(library.classes)} classes; ask for more clips"
            )
        dealt += [(split, labels) for labels in deal_classes(library.classes, weights, sizes, rng)]
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
    """Distinct ids of YouTube's kind. As there, some begin with a hyphen and some hold underscores."""
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
    """Mark clips as missing or damaged; a share above 0 loses at least one, and no class its last event in a split."""
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
    """The whole video of a clip, and the events of the clip in its own time (seconds from the clip's start)."""
    rng = np.random.default_rng([seed, 4, clip.number])
    end = clip.start + CLIP_SECONDS
    bed = ground(pool.backgrounds, round((end + clip.tail) * SAMPLE_RATE), rng)
    placed = lay(clip.classes, pool, rng, window=(clip.start + 0.1, end - 0.1))
    if clip.start >= 2:  # heard before the clip: whoever cuts at the wrong place gets it, and has no label for it
        label = sorted(pool.events)[rng.integers(len(pool.events))]
        samples = take(pool, label, rng)[: round((clip.start - 0.5) * SAMPLE_RATE)]
        samples[-320:] *= np.linspace(1, 0, min(320, len(samples)), dtype=np.float32)
        placed.append(Placed(label, round((clip.start - 0.3) * SAMPLE_RATE) - len(samples), samples))
    scene = mix(placed, bed, rng)
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
    """Write the label files under their published names and in their published forms.

    A clip's weak labels are the classes of its events that are among the 527. A fifth of the strong training clips are
    in the balanced list, the others and those with weak labels alone in the unbalanced one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = dict(zip(known_strong_names().values(), known_strong_names()))
    missing = [label for label, mid in library.mids.items() if names.get(label) != mid]
    if missing:
        raise UserError(f"labels/classes.csv: {missing[0]!r} is not a class of AudioSet Strong under that id")
    strong = [c for c in clips if c.split == "strong"]
    of = {split: [c for c in clips if c.split == split] for split in _SPLITS}
    balanced = set(np.random.default_rng([seed, 6]).permutation(len(strong))[: -(-len(strong) // 5)].tolist())
    few = [c for k, c in enumerate(strong) if k in balanced]
    many = sorted([c for k, c in enumerate(strong) if k not in balanced] + of["weak"], key=lambda c: c.number)
    _write_strong(directory / "audioset_train_strong.tsv", of["strong"], library)
    _write_strong(directory / "audioset_eval_strong.tsv", of["eval"], library)
    _write_segments(directory / "balanced_train_segments.csv", few, library)
    _write_segments(directory / "unbalanced_train_segments.csv", many, library)
    _write_segments(directory / "eval_segments.csv", of["eval"], library)
    weak = known_weak()
    # As published: every display name in quotes.
    rows = [f'{k},{m},"{n}"\n' for k, (m, n) in enumerate(zip(weak.mids, weak.names))]
    _write(directory / "class_labels_indices.csv", "".join(["index,mid,display_name\n", *rows]))
    pairs = sorted(known_strong_names().items())
    _write(directory / "mid_to_display_name.tsv", "".join(f"{mid}\t{name}\n" for mid, name in pairs))
    shutil.copyfile(recordings_dir / "labels" / "ontology.json", directory / "ontology.json")


def known_strong_names() -> dict[str, str]:
    """{mid: display name} of the 456 strong classes."""
    train, evaluated, _ = known_strong()
    return dict(zip(train.mids, train.names)) | dict(zip(evaluated.mids, evaluated.names))


def _write_strong(path: Path, clips: Iterable[Clip], library: Library) -> None:
    lines = ["\t".join(STRONG_HEADER)]
    for clip in clips:
        lines += [f"{clip.id}\t{onset}\t{offset}\t{library.mids[label]}" for label, onset, offset in clip.events]
    _write(path, "\n".join(lines) + "\n")


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
    _write(path, "".join(head + rows))


def summarise(clips: Sequence[Clip], library: Library, pools: dict[str, Pool], *, seed: int) -> dict[str, Any]:
    """Counts of everything; :class:`UserError` if a class has no event left in a split, or a source is in two."""
    shared = pools["eval"].sources() & (pools["strong"].sources() | pools["weak"].sources())
    if shared:
        raise UserError(f"miniature: {sorted(shared)[0]} is in the training and in the evaluation clips")
    counts: dict[str, dict[str, int]] = {}
    for split in _SPLITS:
        heard = Counter(label for c in clips if c.split == split and c.state == "ok" for label, _, _ in c.events)
        counts[split] = {label: heard[label] for label in library.classes}
    for split in ("strong", "eval"):
        empty = [label for label, n in counts[split].items() if n == 0]
        if empty:
            raise UserError(f"miniature: no {split} clip has an event of {', '.join(empty)}; ask for more clips")
    return {
        "seed": seed,
        "clips": dict(Counter(c.split for c in clips)),
        "classes": len(library.classes),
        "events": counts,
        "sources": {split: len(pool.sources()) for split, pool in pools.items()},
        "media": dict(sorted(Counter(c.extension for c in clips if c.state != "missing").items())),
        "missing": sorted(c.id for c in clips if c.state == "missing"),
        "broken": {c.id: c.state for c in clips if c.state in DAMAGES},
    }


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(path)
