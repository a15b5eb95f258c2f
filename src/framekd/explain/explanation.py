"""All that is known about one result, and what differs between two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framekd.config import Config, load, load_files
from framekd.explain.differences import Difference, differences
from framekd.explain.planned import compared, reads
from framekd.explain.records import Record, Records, find, target_of
from framekd.explain.rerun import Rerun
from framekd.graph import SPEC, STAGES
from framekd.plan import Plan

CONFIG = "config/config.yaml"
GRACE = 60.0  # seconds after the end of a job in which Snakemake may still touch its outputs


@dataclass(frozen=True)
class Coverage:
    """Clips of a split that are there, of those wanted."""

    split: str
    ok: int
    wanted: int


@dataclass(frozen=True)
class Training:
    """One checkpoint: its folder, its seed, the hours of its training, and where it ran."""

    folder: str
    seed: int | None
    hours: float | None
    device: str | None
    processes: int | None
    start: str | None


@dataclass
class Explanation:
    """All that :func:`explain` finds out about one result."""

    path: str
    record: Record
    known: bool  # whether the current configuration has this job
    in_paper: bool
    version_now: int | None
    from_current: list[Difference]
    from_paper: list[Difference]
    coverage: list[Coverage]
    trainings: list[Training]
    parents: dict[str, Record]
    files: list[str]  # inputs that no job of the graph made
    changes: list[str]  # what has changed since, one sentence each
    total_seconds: float  # of this job and all its ancestors
    notes: list[str] = field(default_factory=list)
    rerun: Rerun = field(default_factory=lambda: Rerun(None, "Snakemake was not asked"))


def configuration(files: Sequence[str] = ()) -> Config:
    """The configuration that Snakemake reads: config/config.yaml with `files` laid over it."""
    base = [CONFIG] if Path(CONFIG).is_file() else []
    return load_files(*base, *files) if base or files else Config()


def paper_of(config: Config) -> Config:
    """The paper's configuration, with the folders of `config`."""
    return load({"results_dir": config.results_dir, "data_dir": config.data_dir})


def explain(path: str, config: Config, *, deep: bool = False) -> Explanation:
    """Which job made `path`, what differs from `config` and from the paper, and what has changed since.

    Args:
        path: a file of the results, or the folder of a checkpoint.
        config: the current configuration.
        deep: whether `parents` has all ancestors instead of the parents only.

    Raises:
        UserError: no record says which job made it.
    """
    plan = Plan(config)
    record, records = find(path, plan)
    job, from_current = compared(record, plan)
    paper_job, from_paper = compared(record, Plan(paper_of(config)))
    ancestors = records.ancestors(record)
    notes = []
    if record.root != Path(plan.results).resolve():
        notes.append(
            f"this result lies in {_relative(record.root)}, but the current configuration writes to {plan.results}; "
            "name its configuration with --configfile"
        )
    target = Path(target_of(path))
    if not target.exists():
        notes.append("the file is no longer there; this is the job that made it")
    elif target.stat().st_mtime > record.ended + GRACE:
        notes.append("the file has been written after its job ended, by something else")
    return Explanation(
        path=path,
        record=record,
        known=job is not None,
        in_paper=paper_job is not None,
        version_now=job.version if job else None,
        from_current=from_current,
        from_paper=from_paper,
        coverage=read_coverage(records.coverage(record)),
        trainings=_trainings(path, record),
        parents=ancestors if deep else records.parents(record),
        files=[name for name in record.inputs if records.of(name) is None],
        changes=_changes(record, records, plan),
        total_seconds=record.seconds + sum(one.seconds for one in ancestors.values()),
        notes=notes,
    )


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _own_changes(record: Record, plan: Plan) -> list[str]:
    """What has changed in the configuration and the code of a job since it ran."""
    job, found = compared(record, plan)
    if job is None:
        return ["the current configuration has no such job"]
    out = [str(one) for one in found if not one.inert]
    if job.version != record.version:
        out.append(f"code version: {record.version} -> {job.version}")
    return out


def _changes(record: Record, records: Records, plan: Plan) -> list[str]:
    """What has changed since `record` in its configuration, its code, its inputs and its ancestors."""
    out = _own_changes(record, plan)
    out += _other_inputs(record, plan)
    for name, parent in records.parents(record).items():
        only_waited_for = parent.name.startswith("data/gate/") and record.name != "report"
        if parent.ended > record.began and not only_waited_for:
            out.append(f"{name} has run again since")
    for path in record.inputs:
        if not Path(path).exists():
            out.append(f"{path} is no longer there")
        elif records.of(path) is None and Path(path).stat().st_mtime > record.began:
            out.append(f"{path} has been written since")
    for name, parent in records.ancestors(record).items():
        out += [f"{name}: {sentence}" for sentence in _own_changes(parent, plan)]
    return out


def _other_inputs(record: Record, plan: Plan) -> list[str]:
    """Models, soft labels and scores that the job would now read, and those that it would no longer read."""
    now = reads(record, plan)
    if now is None or record.root != Path(plan.results).resolve():
        return []
    folders = ("checkpoints", *STAGES, "ensembles", "evaluation", "search", "downstream")
    own = (*(f"{plan.results}/{folder}/" for folder in folders), f"{plan.data}/soft_labels/")
    then = {path for path in record.inputs if path.startswith(own)}
    gone = [f"it no longer reads {path}" for path in sorted(then - now)]
    return [*gone, *(f"it now reads {path}" for path in sorted(now - then))]


def read_coverage(paths: Iterable[str]) -> list[Coverage]:
    """Clips per split of coverage tables; nothing of tables that are not there."""
    counts: dict[str, dict[str, int]] = {}
    for path in filter(Path.is_file, map(Path, paths)):
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            split, name, state, clips = line.split("\t")
            if not name:
                counts.setdefault(split, {})[state] = int(clips)
    return [Coverage(split, found.get("ok", 0), found.get("wanted", 0)) for split, found in counts.items()]


def _trainings(path: str, record: Record) -> list[Training]:
    """The checkpoints that a job made; only that of `path` where it belongs to one."""
    folders = [str(Path(output).parent) for output in record.outputs if Path(output).name == SPEC]
    mine = str(Path(target_of(path)).parent)
    out = []
    for folder in [mine] if mine in folders else folders:
        spec = Path(folder) / SPEC
        if spec.is_file():
            about = json.loads(spec.read_text(encoding="utf-8"))["provenance"]
            values = (about.get(key) for key in ("seed", "hours", "device", "processes", "start"))
            out.append(Training(folder, *values))
    return out


@dataclass(frozen=True)
class Pair:
    """What differs between two results: own numbers, code, ancestors of one name, and ancestors of only one."""

    first: Explanation
    second: Explanation
    own: list[Difference]
    ancestors: dict[str, list[str]]
    only_first: list[str]
    only_second: list[str]


def explain_pair(first: str, second: str, config: Config) -> Pair:
    """What differs between the jobs of two results, their code, data and ancestors."""
    a, b = explain(first, config, deep=True), explain(second, config, deep=True)
    shared = [name for name in a.parents if name in b.parents]
    changed = {}
    for name in shared:
        if lines := _between(a.parents[name], b.parents[name]):
            changed[name] = lines
    return Pair(
        first=a,
        second=b,
        own=differences(a.record.job, b.record.job),
        ancestors=changed,
        only_first=[name for name in a.parents if name not in b.parents],
        only_second=[name for name in b.parents if name not in a.parents],
    )


def _between(a: Record, b: Record) -> list[str]:
    out = [str(one) for one in differences(a.job, b.job)]
    if a.version != b.version:
        out.append(f"code version: {a.version} -> {b.version}")
    return out
