"""The graph as values: which files there are, and what each job is (:mod:`framekd.jobs`). Only the Snakefile uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from framekd import jobs
from framekd.config import (
    LABEL_FILES,
    SEARCH,
    Config,
    HeadRecipe,
    Recipe,
    Resources,
    Student,
    Teacher,
    UserError,
    identity,
)
from framekd.versions import VERSIONS

WEIGHTS, SPEC, HISTORY = "model.safetensors", "spec.json", "history.jsonl"
TASKS = ("DESED", "DC16-T2", "MAESTRO")
R = TypeVar("R", bound=HeadRecipe)


@dataclass(frozen=True)
class Pack:
    """The trainings of one job: every one of `models` with every one of `seeds`.

    `models` is None where a job trains one model: then the rule has a wildcard {model} instead of a rule per pack.
    """

    name: str
    models: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = ()

    def of(self, wildcards: Any) -> list[str]:
        """The models of a job with these wildcards."""
        return list(self.models) if self.models is not None else [wildcards.model]

    def files(self, pattern: str) -> list[str]:
        """`pattern` with {model} and {seed} filled in, by model, then by seed; other wildcards stay as they are."""
        names = self.models if self.models is not None else ["{model}"]
        by_model = [pattern.replace("{model}", model) for model in names]
        return [path.replace("{seed}", str(seed)) for path in by_model for seed in self.seeds or ("",)]

    def rule(self, prefix: str) -> str:
        """Name of the rule, such as teacher_seed1 or (of several models) teacher_pack1_seed1_2_3."""
        return "_".join(filter(None, [prefix, self.name, self._seeds]))

    @property
    def log(self) -> str:
        """Name of its logs, without suffix; it may have the wildcard {model}."""
        return "/".join(filter(None, [self.name or "{model}", self._seeds]))

    @property
    def _seeds(self) -> str:
        return f"seed{'_'.join(map(str, self.seeds))}" if self.seeds else ""


class Plan:
    """Paths and jobs that follow from a configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = config.results_dir.rstrip("/")
        self.data = config.data_dir.rstrip("/")
        self.settings = {name: config.setting(name) for name in config.settings}
        self.teachers = {name: config.teachers_of(name) for name in config.settings}

    # What there is ----------------------------------------------------------------------------------------------

    @property
    def teacher_settings(self) -> list[str]:
        """Settings whose teachers are trained (equal teachers are trained once)."""
        return list(dict.fromkeys(filter(None, self.teachers.values())))

    @property
    def student_settings(self) -> list[str]:
        """Settings that have students."""
        return [name for name, block in self.settings.items() if block.student]

    def settings_of(self, stage: jobs.Stage) -> list[str]:
        """Settings that have teachers, or students, of their own."""
        return self.teacher_settings if stage == "teachers" else self.student_settings

    @property
    def step2_external(self) -> list[str]:
        """Models whose Step 2 checkpoint is a published one."""
        return [model for model in self.config.models if model not in self.config.step2.train]

    @property
    def step2_trained(self) -> list[str]:
        """Models that Step 2 trains here."""
        return [model for model in self.config.models if model in self.config.step2.train]

    def packs(self, models: Iterable[str], seeds: Iterable[int] = ()) -> list[Pack]:
        """`models` and `seeds` cut into what one job does (`models_per_job`, `seeds_per_job`)."""
        names = list(models)
        parts: list[tuple[str, tuple[str, ...] | None]] = [("", None)] if names else []
        if self.config.models_per_job > 1:
            cut = _cut(names, self.config.models_per_job) if names else []
            parts = [(f"pack{i}", tuple(part)) for i, part in enumerate(cut, 1)]
        some = _cut(list(seeds), self.config.seeds_per_job)
        return [Pack(name, part, tuple(chosen)) for name, part in parts for chosen in some]

    # Files ------------------------------------------------------------------------------------------------------

    @property
    def results_files(self) -> list[str]:
        """What a whole run leaves for people."""
        return [*self.tables.values(), f"{self.results}/report.html"]

    @property
    def tables(self) -> dict[str, str]:
        """The tables of a whole run: name → path."""
        names = ["table1", *(["teachers"] if self.teacher_settings else []), "significance", "table2"]
        return {name: f"{self.results}/{name}.csv" for name in names}

    @property
    def labels(self) -> dict[str, str]:
        """The published label files: name → path."""
        return {name: f"{self.data}/labels/{file}" for name, file in LABEL_FILES.items()}

    @property
    def stores(self) -> list[str]:
        """All shards of the store."""
        return [f"{self.data}/store/{shard:04d}.h5" for shard in range(self.config.audioset.download.shards)]

    @property
    def manifests(self) -> list[str]:
        """The manifests of all shards."""
        return [path.removesuffix(".h5") + ".manifest.tsv" for path in self.stores]

    def clips(self, split: str) -> dict[str, Any]:
        """What a job reads to have the clips of AudioSet Strong's `split` ("train" or "eval") with their labels."""
        names = {"train": ["train_strong"], "eval": ["train_strong", "eval_strong"]}[split]
        return {"stores": self.stores, **{name: self.labels[name] for name in [*names, "mid_to_display_name"]}}

    def weak_clips(self) -> dict[str, Any]:
        """What a job reads to have the clips of AudioSet Weak with their labels."""
        splits = [self.labels[name] for name in self.config.audioset.weak_splits]
        return {
            "stores": self.stores,
            "segments": splits,
            "eval_segments": self.labels["eval"],
            "class_labels": self.labels["class_labels"],
        }

    def miniature(self, part: str) -> list[str]:
        """The miniature that stands in for a data set ("audioset" or a task); none where the data are real."""
        return [f"{self.data}/miniature/{part}/summary.json"] if self.config.miniature else []

    def checkpoint(self, step: str, model: str) -> str:
        """The folder of a checkpoint: "step1", "step2", or "full" (the first seed of the students of a setting)."""
        if step == "full":
            return self.run("students", self.config.downstream.full_setting, model, self.config.seeds[0])
        return f"{self.results}/checkpoints/{step}/{model}"

    def run(self, stage: str, setting: str, model: str, seed: int) -> str:
        """The folder of one training of Step 3."""
        return f"{self.results}/{stage}/{setting}/{model}/seed{seed}"

    @property
    def members(self) -> list[tuple[str, int]]:
        """(model, seed) of all trainings of a setting."""
        return [(model, seed) for model in self.config.models for seed in self.config.seeds]

    def checkpoints(self, step: str, models: Iterable[str]) -> dict[str, list[str]]:
        """The files of checkpoints, as inputs of a job."""
        return inputs_of([self.checkpoint(step, model) for model in models])

    def models(self, stage: str, setting: str) -> dict[str, list[str]]:
        """The files of all trained models of a setting, as inputs of a job."""
        return inputs_of([self.run(stage, setting, model, seed) for model, seed in self.members])

    def start(self, setting: str, models: Iterable[str]) -> dict[str, list[str]]:
        """The checkpoints that the trainings of a setting start from, as inputs."""
        return self.checkpoints(self.settings[setting].start, models)

    def rates(self, stage: jobs.Stage, setting: str, models: Iterable[str]) -> list[str]:
        """The files with the learning rates that searches choose, of those `models` whose rate is searched."""
        recipe = self._block(stage, setting).recipe
        searched = [model for model in models if recipe.wanted_rate(model) == SEARCH]
        return [f"{self.results}/search/{stage}/{setting}/{model}.json" for model in searched]

    def searches(self, stage: jobs.Stage) -> list[tuple[str, str]]:
        """(setting, model) of the teachers or students whose learning rate is searched."""
        return [(s, m) for s in self.settings_of(stage) for m in self.config.models if self.rates(stage, s, [m])]

    def candidates(self, stage: jobs.Stage, setting: str, model: str) -> list[str]:
        """The results of a search: one file per rate of the grid."""
        grid = self._block(stage, setting).search.grid
        return [f"{self.results}/search/{stage}/{setting}/{model}/{rate}/result.json" for rate in grid]

    def soft_labels(self, stage: jobs.Stage, setting: str) -> list[str]:
        """The file of logits that the students of a setting learn from; none for teachers and without distillation."""
        student = self.settings[setting].student
        if stage == "teachers" or student is None or student.recipe.distillation_weight == 0:
            return []
        if file := student.soft_labels:
            return [file.path or f"{self.data}/soft_labels/{file.name}"]
        return [f"{self.results}/ensembles/{self.teachers[setting]}.h5"]

    def scores(self, setting: str) -> str:
        """Where Table I finds the scores of a setting: its students, or its teachers where it has none."""
        if self.settings[setting].student:
            return f"{self.results}/evaluation/students/{setting}.csv"
        return f"{self.results}/evaluation/teachers/{self.teachers[setting]}.csv"

    @property
    def teacher_scores(self) -> list[str]:
        """Where the teachers' table finds its scores, by setting."""
        return [f"{self.results}/evaluation/teachers/{setting}.csv" for setting in self.teacher_settings]

    @property
    def downstream(self) -> list[str]:
        """The results of all downstream jobs."""
        steps = self.config.downstream.checkpoints
        folder = f"{self.results}/downstream"
        return [f"{folder}/{t}/{m}/{step}.csv" for t in TASKS for m in self.config.models for step in steps]

    # What a job asks for ----------------------------------------------------------------------------------------

    def threads(self, stage: str) -> int:
        """CPU cores of a stage."""
        return self.config.resources[stage].threads

    def resources(self, stage: str) -> dict[str, int]:
        """Memory (MB), wall time (minutes) and GPUs of a stage; several GPUs are on one node."""
        need: Resources = self.config.resources[stage]
        out = {"mem_mb": need.mem_mb, "runtime": need.runtime}
        if need.gpu:
            out["gpu"] = need.gpu
        if need.gpu > 1:
            out["nodes"] = 1
        return out

    def params(self, build: Callable[..., jobs.Job], *given: Any) -> dict[str, Callable]:
        """The two params of every rule: `job`, which a script reads, and `identity`, which decides about reruns.

        Snakemake does not compare params whose function asks for `threads`, so that an inert key reruns nothing.
        `build` is called with the wildcards, then `given`.
        """
        return {
            "job": lambda wildcards, threads: build(wildcards, *given).model_dump(mode="json", by_alias=True),
            "identity": lambda wildcards: identity(build(wildcards, *given)),
        }

    # Jobs -------------------------------------------------------------------------------------------------------

    def _block(self, stage: jobs.Stage, setting: str) -> Teacher | Student:
        block = self.settings[setting]
        found = block.teacher if stage == "teachers" else block.student
        assert found is not None, (stage, setting)
        return found

    def miniature_job(self, wildcards: Any) -> jobs.MiniatureJob:
        assert self.config.miniature is not None
        return jobs.MiniatureJob(version=VERSIONS["miniature"], part=wildcards.part, miniature=self.config.miniature)

    def labels_job(self, wildcards: Any) -> jobs.LabelsJob:
        audioset = self.config.audioset
        directory = f"{self.data}/miniature/audioset/meta" if self.config.miniature else audioset.labels_dir
        return jobs.LabelsJob(version=VERSIONS["acquire"], urls=audioset.labels_url, directory=directory)

    def clips_job(self, wildcards: Any) -> jobs.ClipsJob:
        audioset = self.config.audioset
        return jobs.ClipsJob(
            version=VERSIONS["acquire"],
            weak=audioset.weak,
            weak_splits=audioset.weak_splits,
            expected_classes=audioset.expected_classes,
            shards=audioset.download.shards,
        )

    def acquire_job(self, wildcards: Any) -> jobs.AcquireJob:
        audioset = self.config.audioset
        return jobs.AcquireJob(
            version=VERSIONS["acquire"],
            shard=int(wildcards.shard),
            folders=audioset.folders,
            hdf5=audioset.hdf5,
            encoding=audioset.encoding,
            download=audioset.download,
            media=f"{self.data}/miniature/audioset/media" if self.config.miniature else None,
        )

    def coverage_job(self, wildcards: Any) -> jobs.CoverageJob:
        return jobs.CoverageJob(version=VERSIONS["acquire"], min_clips=self.config.audioset.min_clips)

    def checkpoint_job(self, wildcards: Any, step: str, pack: Pack) -> jobs.CheckpointJob:
        block = self.config.step1 if step == "step1" else self.config.step2
        models = pack.of(wildcards)
        published = {} if step == "step1" and self.config.step1.source == "seed" else block.external
        for model in models if published or step == "step2" else []:
            if model not in published:
                line = f"{step}: {{external: {{{model}: {{url: …}}}}}}"
                raise UserError(f"{step}.external has no address for {model}; write {line}")
        return jobs.CheckpointJob(
            version=VERSIONS["checkpoint"],
            step=step,
            models=models,
            sizes={model: self.config.model_sizes(model) for model in models},
            published={model: published[model] for model in models if model in published},
            seed=None if published else self.config.step1.seed,
            downloads=f"{self.data}/checkpoints",
        )

    def step2_job(self, wildcards: Any, pack: Pack) -> jobs.Step2Job:
        step2 = self.config.step2
        return jobs.Step2Job(
            version=VERSIONS["train"],
            recipes={model: for_model(step2.recipe, model) for model in pack.of(wildcards)},
            seed=step2.seed,
            tracking=self.config.tracking,
        )

    def train_job(self, wildcards: Any, stage: jobs.Stage, pack: Pack) -> jobs.TrainJob:
        block = self._block(stage, wildcards.setting)
        whole = Recipe(**block.recipe.model_dump())  # a teacher's recipe has no distillation
        ready_made = isinstance(block, Student) and block.soft_labels is not None
        return jobs.TrainJob(
            version=VERSIONS["train"],
            stage=stage,
            recipes={model: for_model(whole, model) for model in pack.of(wildcards)},
            seeds=list(pack.seeds),
            sequence_model=block.sequence_model if isinstance(block, Teacher) else None,
            # Another site made a ready-made file from its own clips: ours that it lacks are trained on labels.
            missing_clips="labels" if ready_made else "refuse",
            tracking=self.config.tracking,
        )

    def search_job(self, wildcards: Any, stage: jobs.Stage) -> jobs.SearchJob:
        train = self.train_job(wildcards, stage, Pack("", (wildcards.model,)))
        recipe = train.recipes[wildcards.model].model_copy(update={"learning_rate": float(wildcards.rate)})
        return jobs.SearchJob(
            version=VERSIONS["search"],
            train=train.model_copy(update={"recipes": {wildcards.model: recipe}}),
            model=wildcards.model,
            search=self._block(stage, wildcards.setting).search.model_copy(update={"grid": [float(wildcards.rate)]}),
            median_seconds=self.config.evaluation.median_seconds,
            batch_size=self.config.evaluation.batch_size,
        )

    def choose_job(self, wildcards: Any, stage: jobs.Stage) -> jobs.ChooseJob:
        return jobs.ChooseJob(version=VERSIONS["search"], search=self._block(stage, wildcards.setting).search)

    def ensemble_job(self, wildcards: Any) -> jobs.EnsembleJob:
        return jobs.EnsembleJob(version=VERSIONS["ensemble"], batch_size=self.config.evaluation.batch_size)

    def soft_labels_job(self, wildcards: Any) -> jobs.SoftLabelsJob:
        file = self.config.soft_files()[wildcards.file]
        assert file.url is not None
        return jobs.SoftLabelsJob(version=VERSIONS["acquire"], url=file.url, sha256=file.sha256)

    def evaluate_job(self, wildcards: Any) -> jobs.EvaluateJob:
        block = self.config.evaluation
        return jobs.EvaluateJob(
            version=VERSIONS["evaluate"],
            stage=wildcards.stage,
            setting=wildcards.setting,
            models=self.members,
            median_seconds=block.median_seconds,
            batch_size=block.batch_size,
            cross_check=block.cross_check,
        )

    def downstream_job(self, wildcards: Any, pack: Pack) -> jobs.DownstreamJob:
        block = getattr(self.config.downstream, wildcards.task.replace("-", "_"))
        options = {}
        for model in pack.of(wildcards):
            recipes = {mode: for_model(getattr(block, mode), model) for mode in ("frozen", "finetune")}
            options[model] = block.model_copy(update=recipes)
        return jobs.DownstreamJob(
            version=VERSIONS["downstream"],
            task=wildcards.task,
            checkpoint=wildcards.checkpoint,
            modes=self.config.downstream.modes,
            options=options,
        )

    def table_job(self, wildcards: Any, table: str) -> jobs.TableJob:
        settings = {"table1": list(self.settings), "teachers": self.teacher_settings, "table2": []}[table]
        miniature = self.config.miniature is not None
        return jobs.TableJob(version=VERSIONS["tables"], table=table, settings=settings, miniature=miniature)

    def significance_job(self, wildcards: Any) -> jobs.SignificanceJob:
        block = self.config.evaluation
        return jobs.SignificanceJob(
            version=VERSIONS["tables"],
            settings=list(self.settings),
            alpha=block.alpha,
            comparisons=block.comparisons,
            epsilon=block.epsilon,
        )

    # The report -------------------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> list[tuple[jobs.Stage, str]]:
        """(stage, setting) of all evaluations that the tables use."""
        teachers: list[tuple[jobs.Stage, str]] = [("teachers", setting) for setting in self.teacher_settings]
        return [*teachers, *(("students", setting) for setting in self.student_settings)]

    @property
    def trainings(self) -> list[tuple[tuple[str, str, str, str], str]]:
        """((stage, setting, model, seed), folder) of all trainings, Step 2 first."""
        step2 = [(("Step 2", "Step 2", model, ""), self.checkpoint("step2", model)) for model in self.step2_trained]
        return step2 + [
            ((stage, setting, model, f"seed{seed}"), self.run(stage, setting, model, seed))
            for stage, setting in self.evaluations
            for model, seed in self.members
        ]

    def report_inputs(self) -> dict[str, list[str]]:
        """Every file that the report reads."""
        folders = [folder for _, folder in self.trainings]
        tried = [
            p
            for stage in ("teachers", "students")
            for s, m in self.searches(stage)
            for p in self.candidates(stage, s, m)
        ]
        scored = [f"{self.results}/evaluation/{stage}/{setting}" for stage, setting in self.evaluations]
        return {
            "tables": list(self.tables.values()),
            "evaluations": [f"{path}.csv" for path in scored],
            "per_class": [f"{path}.per_class.csv" for path in scored],
            "examples": [f"{path}.examples.npz" for path in scored],
            "histories": [f"{folder}/{HISTORY}" for folder in folders],
            "costs": [*(f"{folder}/{SPEC}" for folder in folders), *tried],
            "coverage": [f"{self.data}/coverage.tsv"],
        }

    def benchmarks(self) -> list[tuple[str, str]]:
        """(stage, file) of Snakemake's benchmarks of all jobs but the report's."""
        models, seeds = self.config.models, self.config.seeds
        names = {
            "miniature": [part for part in ("audioset", *TASKS) if self.config.miniature],
            "data": ["labels", "clips", "coverage"],
            "acquire": [f"{shard:04d}" for shard in range(len(self.stores))],
            "step1": _logs(self.packs(models), models),
            "step2": [
                *_logs(self.packs(self.step2_trained), self.step2_trained),
                *(f"external/{name}" for name in _logs(self.packs(self.step2_external), self.step2_external)),
            ],
            **{
                stage: [
                    f"{s}/{name}" for s in self.settings_of(stage) for name in _logs(self.packs(models, seeds), models)
                ]
                for stage in ("teachers", "students")
            },
            "ensembles": self.teacher_settings,
            "evaluation": [f"{stage}/{setting}" for stage, setting in self.evaluations],
            "downstream": [
                f"{task}/{step}/{name}"
                for task in TASKS
                for step in self.config.downstream.checkpoints
                for name in _logs(self.packs(models), models)
            ],
            "tables": list(self.tables),
        }
        return [
            (stage, f"{self.results}/benchmarks/{stage}/{name}.tsv") for stage, all_ in names.items() for name in all_
        ]

    def report_job(self, wildcards: Any) -> jobs.ReportJob:
        stages = [name[0] for name, _ in self.trainings]
        tried = [
            p
            for stage in ("teachers", "students")
            for s, m in self.searches(stage)
            for p in self.candidates(stage, s, m)
        ]
        return jobs.ReportJob(
            version=VERSIONS["report"],
            config=self.config,
            tables=list(self.tables),
            evaluations=list(self.evaluations),
            histories=[name for name, _ in self.trainings],
            costs=[*stages, *("search" for _ in tried)],
            benchmarks=self.benchmarks(),
        )


def _logs(packs: Iterable[Pack], models: Iterable[str]) -> list[str]:
    """Log names of all jobs of `packs`."""
    return [pack.log.replace("{model}", model) for pack in packs for model in (models if pack.models is None else [""])]


def _cut(values: list[Any], size: int) -> list[list[Any]]:
    """`values` in lists of `size`; one empty list where there are none."""
    return [values[i : i + size] for i in range(0, len(values), size)] or [[]]


def for_model(recipe: R, model: str) -> R:
    """`recipe` with the one learning rate of `model` (a number, or "search")."""
    return recipe.model_copy(update={"learning_rate": recipe.wanted_rate(model)})


def inputs_of(folders: Iterable[str]) -> dict[str, list[str]]:
    """The files of checkpoints, as inputs of a job."""
    folders = list(folders)
    return {"weights": [f"{f}/{WEIGHTS}" for f in folders], "specs": [f"{f}/{SPEC}" for f in folders]}
