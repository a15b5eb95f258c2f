"""The job of a record in another configuration: what it would be, and what it would read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from framekd.config import UserError, identity
from framekd.explain.differences import Difference, differences
from framekd.explain.records import Record
from framekd.graph import STAGES, Pack
from framekd.jobs import Job
from framekd.plan import Plan

PATTERNS: tuple[tuple[str, Callable[[Plan, Any, Pack], Job]], ...] = (
    ("miniature/(?P<part>.+)", lambda plan, w, pack: plan.miniature_job(w)),
    ("data/labels", lambda plan, w, pack: plan.labels_job(w)),
    ("data/extra", lambda plan, w, pack: plan.extra_job(w)),
    ("data/clips/(?P<group>.+)", lambda plan, w, pack: plan.clips_job(w)),
    ("data/gate/(?P<group>.+)", lambda plan, w, pack: plan.gate_job(w)),
    ("data/tasks/(?P<task>.+)", lambda plan, w, pack: plan.task_data_job(w)),
    (r"acquire/(?P<group>[^/]+)/(?P<shard>\d+)", lambda plan, w, pack: plan.acquire_job(w)),
    ("untrained/.+", lambda plan, w, pack: plan.checkpoint_job(w, "untrained", pack)),
    ("step1/.+", lambda plan, w, pack: plan.checkpoint_job(w, "step1", pack)),
    ("step3/.+", lambda plan, w, pack: plan.checkpoint_job(w, "step3", pack)),
    ("step2/external/.+", lambda plan, w, pack: plan.checkpoint_job(w, "step2", pack)),
    ("step2/.+", lambda plan, w, pack: plan.step2_job(w, pack)),
    ("weak_members/.+", lambda plan, w, pack: plan.weak_member_job(w, pack)),
    ("ensembles/step2/clips", lambda plan, w, pack: plan.weak_ensemble_job(w)),
    ("(?P<stage>teachers|students)/(?P<setting>[^/]+)/.+", lambda plan, w, pack: plan.train_job(w, w.stage, pack)),
    (
        "search/(?P<stage>step2|teachers|students)/(?P<setting>[^/]+)/(?P<model>[^/]+)/(?P<rate>[^/]+)",
        lambda plan, w, pack: plan.search_job(w, w.stage),
    ),
    (
        "choose/(?P<stage>step2|teachers|students)/(?P<setting>[^/]+)/(?P<model>[^/]+)",
        lambda plan, w, pack: plan.choose_job(w, w.stage),
    ),
    ("ensembles/(?P<setting>[^/]+)", lambda plan, w, pack: plan.ensemble_job(w)),
    ("soft_labels/(?P<file>.+)", lambda plan, w, pack: plan.soft_labels_job(w)),
    ("evaluation/step2/(?P<model>[^/]+)", lambda plan, w, pack: plan.evaluate_step2_job(w)),
    ("evaluation/published/(?P<model>[^/]+)", lambda plan, w, pack: plan.evaluate_published_job(w)),
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
        elif kind in ("step2", "weak_members") and rest[0] != "external":
            setting, models = "trained" if kind == "step2" else "members", pack.models or ()
            files = [*_flat(plan.checkpoints("step1", models)), *plan.rates("step2", setting, models)]
            files += plan.search_soft_labels("step2", setting)
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


def compared(record: Record, plan: Plan) -> tuple[Job | None, list[Difference]]:
    """The job of `record` in the configuration of `plan`, and what differs."""
    job = job_of(record, plan)
    if job is None:
        return None, []
    live = json.loads(json.dumps(identity(job), default=str))
    return job, differences(record.job, job.model_dump(mode="json", by_alias=True), live=live)
