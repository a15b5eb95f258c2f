"""Counting the folder of a downstream task, and comparing it with the published numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from framekd.config import UserError
from framekd.files import sha256_of, write_text
from framekd.layouts import Events, find, lists
from framekd.layouts.desed import AUDIO, JUDGING, METADATA, read_strong, read_weak
from framekd.layouts.folders import PUBLIC, VOCABULARY, splits
from framekd.layouts.hear import locate, read_split, read_vocabulary, unlisted
from framekd.units import SAMPLE_RATE

_NOT_LASTING = " do not last "
_SYNTHETIC = ("synthetic", JUDGING)


@dataclass
class Counted:
    """What the folder of a task has.

    Attributes:
        numbers: clips by split (of DESED: listed clips), classes.
        rows: (split, class, clips, events); the class is "" for a whole split.
        lists: SHA-256 of the lists of labels, by name.
        shares: (split, clips with audio, listed clips) where clips may be absent.
        faults: sentences about what is wrong whatever the numbers are.
        notices: sentences about what a user should know.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[str, str, int, int]] = field(default_factory=list)
    lists: dict[str, str] = field(default_factory=dict)
    shares: list[tuple[str, int, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def add(self, split: str, labels: Mapping[str, Iterable[str]], classes: Iterable[str]) -> list[str]:
        """Count a split, from the labels of the events of each clip; returns the classes that it lacks."""
        events = Counter(label for found in labels.values() for label in found)
        clips = Counter(label for found in labels.values() for label in set(found))
        self.rows += [(split, "", len(labels), events.total())]
        self.rows += [(split, name, clips[name], events[name]) for name in classes]
        self.numbers[split] = len(labels)
        return [name for name in classes if not events[name]]


def count(task: str, folder: str | Path, *, seconds: int | None = None, public: bool = False) -> Counted:
    """Count the clips and events of a task.

    Args:
        task: "DESED", "DC16-T2" or "MAESTRO".
        seconds: how long every clip has to be.
        public: count DESED's public evaluation set too.
    Raises:
        UserError: a list is absent or cannot be read, or recordings that HEAR's lists name are absent.
    """
    root = Path(folder)
    out = _desed(root, public=public) if task == "DESED" else _hear(task, root, seconds)
    out.lists = {str(Path(path).relative_to(root)): sha256_of(path) for path in lists(task, root, public=public)}
    return out


def _hear(task: str, root: Path, seconds: int | None) -> Counted:
    out = Counted()
    classes = read_vocabulary(find(root, VOCABULARY))
    out.numbers["classes"] = len(classes)
    lacking: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    for split in splits(task, root):
        events = read_split(find(root, f"{split}.json"), classes)
        if both := sorted(set(events) & set(home)):
            out.faults.append(f"{len(both)} clips of {split}.json are in {home[both[0]]}.json too, such as {both[0]}")
        home |= dict.fromkeys(events, split)
        lacking[split] = out.add(split, _labels(events), classes.names)
        files = locate(root, split, events)
        if others := unlisted(root, split, events):
            out.faults.append(f"{len(others)} recordings of {split} are in no list, such as {others[0]}")
        if seconds is not None:
            _lengths(out, split, files, seconds)
    _absent_classes(out, task, lacking, len(classes))
    return out


def _labels(events: Events) -> dict[str, list[str]]:
    return {name: [label for _, _, label in rows] for name, rows in events.items()}


def _lengths(out: Counted, split: str, files: Mapping[str, Path], seconds: int) -> None:
    """Note the clips that are not `seconds` long."""
    wrong = []
    for name, path in files.items():
        try:
            info = soundfile.info(str(path))
        except (soundfile.LibsndfileError, OSError):
            out.faults.append(f"{path} is no recording")
            continue
        if abs(info.frames - seconds * info.samplerate) > info.samplerate // SAMPLE_RATE:
            wrong.append(f"{name}: {info.frames} samples at {info.samplerate} Hz")
    if wrong:
        out.notices.append(f"{len(wrong)} of {len(files)} clips of {split}{_NOT_LASTING}{seconds} s ({wrong[0]})")


def _absent_classes(out: Counted, task: str, lacking: Mapping[str, list[str]], total: int) -> None:
    """Note classes that a split lacks: a fault where they cannot be learnt or tested."""
    never = set.intersection(*(set(names) for names in lacking.values())) if lacking else set()
    for split, names in lacking.items():
        if names:
            shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            sentence = f"{split} has no event of {len(names)} of {total} classes ({shown})"
            (out.notices if task == "MAESTRO" and not never else out.faults).append(sentence)


def _desed(root: Path, *, public: bool) -> Counted:
    out = Counted()
    labels = {"weak": read_weak(find(root, *METADATA["weak"]))}
    judging = [JUDGING] if (root / METADATA[JUDGING][0]).is_file() else []
    kinds = ["synthetic", "validation", *judging, *([PUBLIC] if public else [])]
    labels |= {kind: _labels(read_strong(find(root, *METADATA[kind]))) for kind in kinds}
    classes = sorted({name for found in labels["weak"].values() for name in found})
    out.numbers["classes"] = len(classes)
    for kind, found in labels.items():
        strange = sorted({name for names in found.values() for name in names} - set(classes))
        if strange:
            out.faults.append(f"{kind} has {', '.join(strange)}, which no weak clip has")
        if lacking := out.add(kind, found, classes):
            out.faults.append(f"{kind} has no event of {len(lacking)} of {len(classes)} classes ({', '.join(lacking)})")
        folder = find(root, *AUDIO[kind])
        there = {path.name for path in folder.iterdir() if path.is_file()}
        out.shares.append((kind, len(there & set(found)), len(found)))
        if others := sorted(name for name in there - set(found) if name.endswith(".wav")):
            out.notices.append(f"{len(others)} recordings in {folder} are in no list, such as {others[0]}")
    return out


def compare(task: str, folder: str | Path, found: Counted, wanted: Mapping[str, int | None], min_share: float) -> None:
    """Refuse data that are broken or differ from the published ones.

    Args:
        wanted: published numbers; None is not compared.
        min_share: least share of DESED's real clips.
    Raises:
        UserError: one sentence with the counts and the lines of configuration that accept them.
    """
    if found.faults:
        raise UserError(f"{folder}: {'; '.join(found.faults)}; correct the lists or complete the folder")
    numbers = {name: n for name, n in wanted.items() if n is not None}
    lines, said = {}, []
    for name, n in numbers.items():
        if (
            name != "seconds"
            and (name not in (JUDGING, PUBLIC) or name in found.numbers)
            and (there := found.numbers.get(name, 0)) != n
        ):
            said.append(f"{name} {there} instead of {n}")
            lines[name] = str(there)
    if lengths := [sentence for sentence in found.notices if _NOT_LASTING in sentence] if "seconds" in numbers else []:
        said += lengths
        lines["seconds"] = "null"
    others = [name for name in found.numbers if name not in wanted] if wanted else []
    said += [f"{name} is not published" for name in others]
    if said:
        shown = "null" if others else f"{{{', '.join(f'{name}: {text}' for name, text in lines.items())}}}"
        raise UserError(
            f"{folder} is not the published {task}: {'; '.join(said)}; check where it comes from, or accept it with "
            f"downstream: {{counts: {{{task}: {shown}}}}}"
        )
    short = [(k, a, b) for k, a, b in found.shares if a < b * (1 if k in _SYNTHETIC else min_share) or not a]
    if short:
        counts = ", ".join(f"{a} of {b} {kind} clips" for kind, a, b in short)
        least = min(int(100 * a / max(1, b)) / 100 for _, a, b in short)
        real = all(kind not in _SYNTHETIC for kind, _, _ in short) and least > 0
        accept = f"; to go on with these, write downstream: {{min_share: {least:g}}}" if real else ""
        raise UserError(
            f"{folder} has {counts}, and downstream.min_share is {min_share:g}; add the clips (docs/downstream.md)"
            + accept
        )


def write_counts(path: str | Path, found: Counted) -> None:
    """Write the counts as a TSV: split, class, clips, events."""
    rows = [f"{split}\t{name}\t{clips}\t{events}\n" for split, name, clips, events in found.rows]
    write_text(path, "".join(["split\tclass\tclips\tevents\n", *rows]))
