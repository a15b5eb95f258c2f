"""Which job made a result, with which configuration, and what has changed since.

Every finished job leaves a record beside its log (:func:`framekd.pipeline.log.record`). A record's name is the path
of that file below `logs/`, without suffix, such as ``students/proposed/BEATs/seed1``: it says which job it is.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deepdiff import DeepDiff

from framekd.config import Config, UserError, identity, load, load_files
from framekd.graph import SPEC, STAGES, WEIGHTS, Pack
from framekd.jobs import Job
from framekd.plan import Plan

CONFIG = "config/config.yaml"
COVERAGE = "coverage"
GRACE = 60.0  # seconds after the end of a job in which Snakemake may still touch its outputs
MANY = 6  # jobs of one folder that are listed one by one
SHORT = 60  # characters of a value in print


# Records --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What a finished job was. `name` is its place below `logs/` of the results folder `root`."""

    name: str
    root: Path
    rule: str
    job: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    began: float
    seconds: float

    @property
    def ended(self) -> float:
        """When the job ended, in seconds since 1970."""
        return self.began + self.seconds

    @property
    def version(self) -> int | None:
        """The code version that the job ran with."""
        return self.job.get("version")


class Records:
    """The records of all finished jobs below some results folders, by the files that they made."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._made: dict[Path, Record] = {}
        for root in dict.fromkeys(path.resolve() for path in roots):
            for record in _read_records(root):
                for output in record.outputs:
                    before = self._made.setdefault(Path(output).resolve(), record)
                    if before.ended < record.ended:  # the same file, made by another rule before
                        self._made[Path(output).resolve()] = record

    def of(self, path: str | Path) -> Record | None:
        """The record of the job that made `path`, a file or the folder of a checkpoint."""
        return self._made.get(Path(target_of(path)).resolve())

    def parents(self, record: Record) -> dict[str, Record]:
        """The records of the jobs that made the inputs of `record`, by name."""
        found = (self.of(path) for path in record.inputs)
        return {parent.name: parent for parent in found if parent is not None and parent is not record}

    def ancestors(self, record: Record) -> dict[str, Record]:
        """The parents of `record`, their parents, and so on, by name; the nearest first."""
        out: dict[str, Record] = {}
        waiting = [record]
        while waiting:
            for name, parent in self.parents(waiting.pop(0)).items():
                if name not in out:
                    out[name] = parent
                    waiting.append(parent)
        return out

    def coverage(self, record: Record) -> list[str]:
        """The coverage tables that `record` and its ancestors have waited for."""
        related = (record, *self.ancestors(record).values())
        paths = {path for one in related for path in (*one.inputs, *one.outputs)}
        return sorted(path for path in paths if Path(path).parent.name == COVERAGE)


def _read_records(root: Path) -> Iterator[Record]:
    logs = root / "logs"
    for path in sorted(logs.rglob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            yield Record(
                name=path.relative_to(logs).with_suffix("").as_posix(),
                root=root,
                rule=about["rule"],
                job=about["job"],
                inputs=tuple(about["inputs"]),
                outputs=tuple(about["outputs"]),
                began=about["began"],
                seconds=about["seconds"],
            )
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not the record of a job; remove it and run its job again") from None


def target_of(path: str | Path) -> str:
    """The file that `path` means: the weights where it is the folder of a checkpoint."""
    return str(Path(path) / WEIGHTS) if (Path(path) / WEIGHTS).is_file() else str(path)


def find(path: str | Path, plan: Plan) -> tuple[Record, Records]:
    """The record of the job that made `path`, among those of its results folder and of the configured one.

    Raises:
        UserError: no record says which job made it.
    """
    above = [folder for folder in Path(path).resolve().parents if (folder / "logs").is_dir()]
    records = Records([*above[:1], Path(plan.results)])
    record = records.of(path)
    if record is None:
        there = "no job has left a record of it" if Path(path).exists() else "no such file"
        raise UserError(f"{path}: {there}; make it with `snakemake {target_of(path)}`, then ask again")
    return record, records


# Jobs of a configuration ----------------------------------------------------------------------------------------------

PATTERNS: tuple[tuple[str, Callable[[Plan, Any, Pack], Job]], ...] = (
    ("miniature/(?P<part>.+)", lambda plan, w, pack: plan.miniature_job(w)),
    ("data/labels", lambda plan, w, pack: plan.labels_job(w)),
    ("data/clips/(?P<group>.+)", lambda plan, w, pack: plan.clips_job(w)),
    ("data/gate/(?P<group>.+)", lambda plan, w, pack: plan.gate_job(w)),
    (r"acquire/(?P<group>[^/]+)/(?P<shard>\d+)", lambda plan, w, pack: plan.acquire_job(w)),
    ("untrained/.+", lambda plan, w, pack: plan.checkpoint_job(w, "untrained", pack)),
    ("step1/.+", lambda plan, w, pack: plan.checkpoint_job(w, "step1", pack)),
    ("step2/external/.+", lambda plan, w, pack: plan.checkpoint_job(w, "step2", pack)),
    ("step2/.+", lambda plan, w, pack: plan.step2_job(w, pack)),
    ("weak_members/.+", lambda plan, w, pack: plan.weak_member_job(w, pack)),
    ("ensembles/step2/clips", lambda plan, w, pack: plan.weak_ensemble_job(w)),
    ("(?P<stage>teachers|students)/(?P<setting>[^/]+)/.+", lambda plan, w, pack: plan.train_job(w, w.stage, pack)),
    (
        "search/(?P<stage>teachers|students)/(?P<setting>[^/]+)/(?P<model>[^/]+)/(?P<rate>[^/]+)",
        lambda plan, w, pack: plan.search_job(w, w.stage),
    ),
    (
        "choose/(?P<stage>teachers|students)/(?P<setting>[^/]+)/(?P<model>[^/]+)",
        lambda plan, w, pack: plan.choose_job(w, w.stage),
    ),
    ("ensembles/(?P<setting>[^/]+)", lambda plan, w, pack: plan.ensemble_job(w)),
    ("soft_labels/(?P<file>.+)", lambda plan, w, pack: plan.soft_labels_job(w)),
    ("evaluation/step2/(?P<model>[^/]+)", lambda plan, w, pack: plan.evaluate_step2_job(w)),
    ("evaluation/ensembles/(?P<setting>[^/]+)", lambda plan, w, pack: plan.evaluate_job(w)),
    (
        "evaluation/(?P<stage>teachers|students)/(?P<setting>[^/]+)/.+",
        lambda plan, w, pack: plan.evaluate_job(w, pack),
    ),
    ("downstream/(?P<task>[^/]+)/(?P<checkpoint>[^/]+)/.+", lambda plan, w, pack: plan.downstream_job(w, pack)),
    ("tables/significance", lambda plan, w, pack: plan.significance_job(w)),
    ("tables/(?P<table>[^/]+)", lambda plan, w, pack: plan.table_job(w, w.table)),
    ("report", lambda plan, w, pack: plan.report_job(w)),
)
"""The name of a record → how the plan builds that job."""


def job_of(record: Record, plan: Plan) -> Job | None:
    """The job of the same name in another configuration; None where that configuration has no such job."""
    for pattern, build in PATTERNS:
        if found := re.fullmatch(pattern, record.name):
            try:
                return build(plan, SimpleNamespace(**found.groupdict()), _pack(record.job))
            except (UserError, KeyError, AttributeError, AssertionError):
                return None  # a setting, model or file that this configuration does not have
    return None


def reads(record: Record, plan: Plan) -> set[str] | None:
    """The models, soft labels and scores that the job of this name reads in another configuration.

    None where that configuration has no such job, or where the job reads data only.
    """
    kind, *rest = record.name.split("/")
    pack = _pack(record.job)
    try:
        if kind in ("teachers", "students"):
            stage, setting, models = STAGES[kind == "students"], rest[0], pack.models or ()
            files = [*_flat(plan.start(setting, models)), *plan.rates(stage, setting, models)]
            files += plan.soft_labels(stage, setting)
        elif kind == "ensembles":
            files = _flat(plan.models("teachers", rest[0]))
        elif kind == "evaluation":
            if rest[0] == "step2":
                files = _flat(plan.checkpoints("step2", rest[1:]))
            elif rest[0] == "ensembles":
                files = _flat(plan.models("teachers", rest[1]))
            else:
                files = _flat(plan.models(rest[0], rest[1], pack.members(None)))
        elif kind == "downstream":
            files = _flat(plan.checkpoints(rest[1], pack.models or ()))
        elif kind == "tables" and rest[0] != "teachers":
            by_file = {"table2": plan.downstream, "step2": plan.step2_scores}
            files = by_file.get(rest[0]) or [path for setting in plan.settings for path in plan.scores(setting)]
        else:
            return None
    except (UserError, KeyError, AssertionError):
        return None
    return set(files)


def _flat(inputs: dict[str, list[str]]) -> list[str]:
    return [path for paths in inputs.values() for path in paths]


def _pack(job: dict[str, Any]) -> Pack:
    """The models and seeds that a job had."""
    models = job.get("models") or job.get("recipes") or job.get("options") or ()
    names = [model if isinstance(model, str) else model[0] for model in models]  # of an evaluation: (model, seed)
    seeds = job.get("seeds") or [model[1] for model in models if not isinstance(model, str)]
    return Pack("", tuple(dict.fromkeys(names)), tuple(dict.fromkeys(seeds)))


@dataclass(frozen=True)
class Difference:
    """One number of a job: `key` has dots between its parts. `inert` numbers cannot change a result."""

    key: str
    then: Any
    now: Any
    inert: bool = False

    def __str__(self) -> str:
        note = " (cannot change the result)" if self.inert else ""
        return f"{self.key}: {_short(self.then)} -> {_short(self.now)}{note}"


ABSENT = "absent"


def _short(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def differences(then: Any, now: Any, *, live: Any = None) -> list[Difference]:
    """What differs between two jobs as plain data, without their code versions.

    Args:
        then: the job that ran, or the first of two.
        now: the job that it is compared with.
        live: the keys of `now` that a result depends on, nested as in `now`; all where it is None.

    Returns:
        One per key, in the order of the keys. A difference that several models share is one, with the key
        ``recipes.{ATST-F,BEATs}.epochs``.
    """
    tree = DeepDiff(
        then,
        now,
        view="tree",
        ignore_numeric_type_changes=True,
        threshold_to_diff_deeper=0,
        exclude_paths=["root['version']"],
    )
    found = []
    for items in tree.values():
        for item in items:
            path = [str(part) for part in item.path(output_format="list")]
            inert = live is not None and not _has(live, path)
            found.append((path, _plain(item.t1), _plain(item.t2), inert))
    return _fold(sorted(found, key=lambda one: one[0]))


def _plain(value: Any) -> Any:
    return ABSENT if repr(value) == "not present" else value


def _has(tree: Any, path: Sequence[str]) -> bool:
    """Whether nested dicts lead down `path`, or up to a value or list that contains the rest of it."""
    for key in path:
        if not isinstance(tree, dict):
            return True
        if key not in tree:
            return not tree  # an empty dict may get any key
        tree = tree[key]
    return True


def _fold(found: list[tuple[list[str], Any, Any, bool]]) -> list[Difference]:
    """Differences that several models share, as one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    first: dict[tuple[str, ...], tuple[Any, Any, bool]] = {}
    for path, then, now, inert in found:
        by_model = len(path) > 2 and path[0] in ("recipes", "options", "sizes")
        key = (path[0], *path[2:]) if by_model else tuple(path)
        group = (*key, json.dumps([then, now], default=str), str(by_model))
        groups.setdefault(group, []).append(path[1] if by_model else "")
        first.setdefault(group, (then, now, inert))
    out = []
    for group, models in groups.items():
        parts = list(group[:-2])
        if models[0]:
            parts.insert(1, models[0] if len(models) == 1 else "{" + ",".join(models) + "}")
        out.append(Difference(".".join(parts), *first[group]))
    return out


def _compared(record: Record, plan: Plan) -> tuple[Job | None, list[Difference]]:
    """The job of `record` in the configuration of `plan`, and what differs."""
    job = job_of(record, plan)
    if job is None:
        return None, []
    live = json.loads(json.dumps(identity(job), default=str))
    return job, differences(record.job, job.model_dump(mode="json", by_alias=True), live=live)


# What has changed -----------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Rerun:
    """What Snakemake would run to make the file again; None, with the reason, where it was not asked."""

    jobs: dict[str, int] | None
    reason: str = ""


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
    job, from_current = _compared(record, plan)
    paper_job, from_paper = _compared(record, Plan(paper_of(config)))
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
    job, found = _compared(record, plan)
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


def ask_snakemake(path: str, configfiles: Sequence[str] = (), *, snakefile: str = "Snakefile") -> Rerun:
    """Ask Snakemake by a dry run which jobs make `path` again: rule → count."""
    if not Path(snakefile).is_file():
        return Rerun(None, "no Snakefile here; run framekd in the folder of the repository")
    if importlib.util.find_spec("snakemake") is None:
        return Rerun(None, "Snakemake is not installed; pip install 'framekd[workflow]'")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--nolock", "--snakefile", snakefile]
    command += ["--configfile", *configfiles] if configfiles else []
    done = subprocess.run([*command, "--", target_of(path)], capture_output=True, text=True, check=False)
    said = f"{done.stdout}\n{done.stderr}"
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if re.search("rror|xception", line)]
        why = (errors or lines or ["no output"])[-1]
        return Rerun(None, f"the dry run of Snakemake failed: {why}")
    return Rerun(job_counts(said))


def job_counts(text: str) -> dict[str, int]:
    """The table "Job stats" of Snakemake's output: rule → count, without the total."""
    out: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("Job stats"):
            inside, out = True, {}
        elif inside and (found := re.fullmatch(r"(\S+)\s+(\d+)\s*", line)):
            out[found[1]] = int(found[2])
        elif inside and out:
            inside = False
    out.pop("total", None)
    return out


# Two results ----------------------------------------------------------------------------------------------------------


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


# Print ----------------------------------------------------------------------------------------------------------------


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
