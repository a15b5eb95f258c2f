"""Explanations as lines for people."""

from __future__ import annotations

import time

from framekd.explain.differences import Difference
from framekd.explain.explanation import Explanation, Pair, Training
from framekd.explain.records import Record
from framekd.explain.rerun import Rerun

MANY = 6  # jobs of one folder that are listed one by one


def text(found: Explanation, *, deep: bool = False) -> str:
    """An explanation as lines for people."""
    record = found.record
    lines = [f"{found.path}", f"  made by {record.rule} ({record.name}), {_when(record)}"]
    now = found.version_now
    same = "the same now" if now == record.version else f"{now} now" if now is not None else "no such job now"
    lines.append(f"  code version {record.version}, {same}")
    lines += [f"  note: {note}" for note in found.notes]
    for training in found.trainings:
        lines.append(f"  {training.folder}: " + _training(training))
    lines.append(f"  this job and all before it: {_duration(found.total_seconds)}")
    if found.coverage:
        parts = [f"{one.split} {one.ok} of {one.wanted}" for one in found.coverage]
        lines.append("  clips: " + ", ".join(parts))
    lines += _part("against the current configuration", found.from_current, found.known)
    of_paper = [one for one in found.from_paper if not one.inert]
    lines += _part("against the paper", of_paper, found.in_paper)
    lines.append("  all ancestors:" if deep else "  parents:")
    lines += _jobs(found.parents) or ["    none"]
    lines += [f"    {name}: no job's record" for name in found.files]
    own = {str(one) for one in found.from_current}
    changes = [sentence for sentence in found.changes if sentence not in own]
    if len(changes) < len(found.changes):
        count = len(found.changes) - len(changes)
        changes.insert(0, f"{count} key{'s' * (count > 1)} of the current configuration (above)")
    lines += ["  changed since:", *(f"    {sentence}" for sentence in changes or ["nothing"])]
    lines += _rerun(found.rerun)
    return "\n".join(lines)


def _jobs(records: dict[str, Record]) -> list[str]:
    """One line per job; one for all jobs of a folder where these are many."""
    folders: dict[str, list[Record]] = {}
    for name, record in records.items():
        folders.setdefault(name.rpartition("/")[0], []).append(record)
    out = []
    for folder, found in folders.items():
        if len(found) > MANY:
            last = max(found, key=lambda record: record.ended)
            out.append(f"    {folder}: {len(found)} jobs, the last {_when(last)}")
        else:
            out += [f"    {record.name}: {_when(record)}" for record in found]
    return out


def _when(record: Record) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.began))
    return f"{began}, {_duration(record.seconds)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _training(one: Training) -> str:
    parts = [] if one.seed is None else [f"seed {one.seed}"]
    if one.hours is not None:
        parts.append(f"{one.hours:.3g} h on {one.processes} {one.device}")
    if one.start:
        parts.append(f"from {one.start}")
    return ", ".join(parts) or "no training"


def _part(title: str, found: list[Difference], known: bool) -> list[str]:
    if not known:
        return [f"  {title}: it has no such job"]
    return [f"  {title}:" + ("" if found else " no difference"), *(f"    {one}" for one in found)]


def _rerun(rerun: Rerun) -> list[str]:
    if rerun.jobs is None:
        return [f"  reruns: unknown ({rerun.reason})"]
    if not rerun.jobs:
        return ["  reruns: none"]
    counts = ", ".join(f"{rule}: {count}" for rule, count in rerun.jobs.items())
    return [f"  reruns: {counts}"]


def pair_text(found: Pair) -> str:
    """What differs between two results, as lines for people."""
    a, b = found.first, found.second
    lines = [f"{a.path} -> {b.path}"]
    lines.append(f"  {a.record.name}, {_when(a.record)} -> {b.record.name}, {_when(b.record)}")
    same = a.record.version == b.record.version
    lines.append(f"  code version: {a.record.version}" + ("" if same else f" -> {b.record.version}"))
    lines += _part("configuration", found.own, True)
    for before, after in zip(a.trainings, b.trainings):
        lines.append(f"  training: {_training(before)} -> {_training(after)}")
    if a.coverage != b.coverage:
        for name, one in (("first", a), ("second", b)):
            counts = ", ".join(f"{c.split} {c.ok} of {c.wanted}" for c in one.coverage) or "not known"
            lines.append(f"  clips of the {name}: {counts}")
    lines.append("  ancestors that differ:" + ("" if found.ancestors else " none"))
    for name, changed in found.ancestors.items():
        lines += [f"    {name}: {sentence}" for sentence in changed]
    for title, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            lines.append(f"  ancestors of the {title} only: {', '.join(names)}")
    return "\n".join(lines)
