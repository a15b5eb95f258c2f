"""The graph of files: where every result lies, which files a job reads, and which trainings one job does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from framekd.config import GROUPS, LABEL_FILES, PAPER_TASKS, SEARCH, Config, Step2, Student, Teacher
from framekd.jobs import Searched, Stage
from framekd.layouts import by_hand, lists

WEIGHTS, SPEC, HISTORY = "model.safetensors", "spec.json", "history.jsonl"
EXTRA = ("audio.h5", "events.tsv")
STAGES: tuple[Stage, ...] = ("teachers", "students")
SEARCHED: tuple[Searched, ...] = ("step2", *STAGES)
"""Stages whose learning rates can be searched. Step 2 has two settings: "trained", and "members" (its soft labels)."""


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

    def members(self, wildcards: Any) -> list[tuple[str, int]]:
        """(model, seed) of a job's trainings, in the order of :meth:`files`."""
        return [(model, seed) for model in self.of(wildcards) for seed in self.seeds]

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


class Graph:
    """Paths that follow from a configuration."""

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

    def settings_of(self, stage: Searched) -> list[str]:
        """Settings that have teachers, or students, of their own; of Step 2 what is trained."""
        if stage == "step2":
            return [name for name in ("trained", "members") if self.models_of(stage, name)]
        return self.teacher_settings if stage == "teachers" else self.student_settings

    def models_of(self, stage: Searched, setting: str) -> list[str]:
        """The models that a setting trains."""
        if stage == "step2":
            return self.step2_trained if setting == "trained" else self.weak_members
        return self.config.models

    @property
    def untrained(self) -> list[str]:
        """Models whose weights before any training are a baseline of Table II."""
        return self.config.models if "untrained" in self.config.downstream.checkpoints else []

    @property
    def step2_external(self) -> list[str]:
        """Models whose Step 2 checkpoint is a published one."""
        return [model for model in self.config.models if model not in self.config.step2_trained]

    @property
    def step2_trained(self) -> list[str]:
        """Models that Step 2 trains here."""
        return self.config.step2_trained

    @property
    def weak_members(self) -> list[str]:
        """Models that are trained on weak labels alone, for Step 2 to learn from."""
        soft = self.config.step2.soft_labels
        return soft.members if soft and self.config.step2_distils else []

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
        names += ["step2"] if self.config.audioset.weak else []  # without AudioSet Weak there is nothing to score on
        return {name: f"{self.results}/{name}.csv" for name in names}

    @property
    def labels(self) -> dict[str, str]:
        """The published label files: name → path."""
        return {name: f"{self.data}/labels/{file}" for name, file in LABEL_FILES.items()}

    @property
    def groups(self) -> list[str]:
        """The groups of clips that the run needs."""
        return [group for group in GROUPS if group != "weak" or self.step2_trained]

    def stores(self, *groups: str) -> list[str]:
        """All shards of these groups of clips."""
        shards = self.config.audioset.download.shards
        return [f"{self.data}/store/{group}/{shard:04d}.h5" for group in groups for shard in range(shards[group])]

    def manifests(self, group: str) -> list[str]:
        """The manifests that the coverage of `group` counts; AudioSet Weak has clips in all groups."""
        stores = self.stores(*(GROUPS if group == "weak" else [group]))
        return [path.removesuffix(".h5") + ".manifest.tsv" for path in stores]

    def coverage(self, *groups: str) -> list[str]:
        """The files that exist once enough clips of these groups are there: jobs that use the clips wait for them."""
        return [f"{self.data}/coverage/{group}.tsv" for group in groups]

    @property
    def extra(self) -> dict[str, str]:
        """The audio and the events of own recordings, as clips; nothing where there are none."""
        return {name: f"{self.data}/extra/{name}" for name in EXTRA} if self.config.audioset.extra else {}

    def clips(self, *splits: str, own: bool = True) -> dict[str, Any]:
        """What a job reads to have the clips of AudioSet Strong's `splits` ("train", "eval") with their labels.

        The classes follow from the training labels, so that these are always among them, and own labels if `own`.
        """
        audio, events = [[self.extra[name]] if own and self.extra else [] for name in EXTRA]
        names = dict.fromkeys(["train_strong", *(f"{split}_strong" for split in splits), "mid_to_display_name"])
        groups = [{"train": "strong", "eval": "eval"}[split] for split in splits]
        stores = self.stores(*groups) + (audio if "train" in splits else [])
        return {"stores": stores, **{name: self.labels[name] for name in names}, "extra": events}

    def weak_clips(self) -> dict[str, Any]:
        """What a job reads to have the clips of AudioSet Weak with their labels."""
        splits = [self.labels[name] for name in self.config.audioset.weak_splits]
        return {
            "stores": self.stores(*GROUPS),
            "segments": splits,
            "class_labels": self.labels["class_labels"],
        }

    @property
    def weak_eval_groups(self) -> list[str]:
        """The groups that have evaluation clips of AudioSet Weak."""
        return [group for group in self.groups if group != "strong"]

    def weak_evaluation(self) -> dict[str, Any]:
        """What a job reads to have AudioSet Weak's evaluation clips with their labels.

        Without the group `weak` these are the clips that AudioSet Strong evaluates too.
        """
        return {
            "stores": self.stores(*self.weak_eval_groups),
            "eval_segments": self.labels["eval"],
            "class_labels": self.labels["class_labels"],
        }

    def miniature(self, part: str) -> list[str]:
        """The miniature that stands in for a data set ("audioset" or a task); none where the data are real."""
        made = self.config.miniature and part in ("audioset", *PAPER_TASKS)
        return [f"{self.data}/miniature/{part}/summary.json"] if made else []

    def fetched(self, task: str) -> bool:
        """Whether the pipeline makes the folder of a task; it leaves one that somebody has filled as it is."""
        downstream = self.config.downstream
        known = task in PAPER_TASKS and not self.miniature(task)
        return known and downstream.fetch.of(task) is not None and not by_hand(downstream.named[task].data)

    def task_lists(self, task: str) -> list[str]:
        """The lists of labels of a folder that the pipeline does not make."""
        downstream = self.config.downstream
        return [] if self.fetched(task) else lists(task, downstream.named[task].data, public=downstream.public(task))

    def task_data(self, task: str) -> list[str]:
        """What a job waits for that reads the data of a task: they are counted then, or (further tasks) have lists."""
        if self.miniature(task):
            return []
        return [f"{self.data}/tasks/{task}/state.json"] if task in PAPER_TASKS else self.task_lists(task)

    def checkpoint(self, step: str, model: str) -> str:
        """The folder of a checkpoint: "untrained", "step1", "step2", or "full" (first seed of a setting's students)."""
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

    def models(self, stage: str, setting: str, some: Iterable[tuple[str, int]] | None = None) -> dict[str, list[str]]:
        """The files of trained models of a setting, as inputs of a job: of all, or of `some` (model, seed)."""
        members = self.members if some is None else some
        return inputs_of([self.run(stage, setting, model, seed) for model, seed in members])

    def start(self, setting: str, models: Iterable[str]) -> dict[str, list[str]]:
        """The checkpoints that the trainings of a setting start from, as inputs."""
        return self.checkpoints(self.settings[setting].start, models)

    def rates(self, stage: Searched, setting: str, models: Iterable[str]) -> list[str]:
        """The files with the learning rates that searches choose, of those `models` whose rate is searched."""
        recipe = self.block(stage, setting).recipe
        searched = [model for model in models if recipe.of(model).learning_rate == SEARCH]
        return [f"{self.results}/search/{stage}/{setting}/{model}.json" for model in searched]

    def searches(self, stage: Searched) -> list[tuple[str, str]]:
        """(setting, model) of the trainings of Step 2, teachers or students whose learning rate is searched."""
        names = self.settings_of(stage)
        return [(s, m) for s in names for m in self.models_of(stage, s) if self.rates(stage, s, [m])]

    def search_start(self, stage: Searched, setting: str, model: str) -> dict[str, list[str]]:
        """The checkpoint that a search starts from, as inputs."""
        return self.checkpoints("step1", [model]) if stage == "step2" else self.start(setting, [model])

    def search_clips(self, stage: Searched, setting: str) -> dict[str, Any]:
        """The clips that a search reads: training clips, and evaluation clips where these judge."""
        block = self.block(stage, setting)
        if isinstance(block, Step2):
            return self.weak_clips()
        return self.clips(*dict.fromkeys(["train", block.search.judged_on]))

    def search_coverage(self, stage: Searched, setting: str) -> list[str]:
        """What a search waits for: see :meth:`coverage`."""
        block = self.block(stage, setting)
        if isinstance(block, Step2):
            return self.coverage(*GROUPS)
        return self.coverage("strong", *(["eval"] if block.search.judged_on == "eval" else []))

    def search_soft_labels(self, stage: Searched, setting: str) -> list[str]:
        """The soft labels that a search learns from."""
        if stage != "step2":
            return self.soft_labels(stage, setting)
        return self.clip_soft_labels() if setting == "trained" else []

    def candidates(self, stage: Searched, setting: str, model: str) -> list[str]:
        """The results of a search: one file per rate of the grid."""
        grid = self.block(stage, setting).search.grid
        return [f"{self.results}/search/{stage}/{setting}/{model}/{rate}/result.json" for rate in grid]

    def soft_labels(self, stage: Stage, setting: str) -> list[str]:
        """The file of logits that the students of a setting learn from; none for teachers and without distillation."""
        student = self.settings[setting].student
        if stage == "teachers" or student is None or student.recipe.distillation_weight == 0:
            return []
        if file := student.soft_labels:
            return [file.path or f"{self.data}/soft_labels/{file.name}"]
        return [f"{self.results}/ensembles/{self.teachers[setting]}.h5"]

    def clip_soft_labels(self) -> list[str]:
        """The files that Step 2 learns from: logits and (of .npy) their index; none without distillation."""
        soft = self.config.step2.soft_labels
        if soft is None or not self.config.step2_distils:
            return []
        if soft.members:
            return [f"{self.results}/ensembles/step2/clips.h5"]
        return [file.path or f"{self.data}/soft_labels/{file.name}" for file in soft.files]

    def evaluation(self, stage: str, setting: str, model: str, seed: int) -> str:
        """The score of one training of Step 3; its scores per class are beside it."""
        return f"{self.results}/evaluation/{stage}/{setting}/{model}/seed{seed}.csv"

    def ensemble_score(self, setting: str) -> str:
        """The score of the ensemble of the teachers of a setting."""
        return f"{self.results}/evaluation/ensembles/{setting}.csv"

    def scored(self, setting: str) -> tuple[Stage, str]:
        """(stage, setting) that Table I scores for a setting: its students, or its teachers where it has none."""
        if self.settings[setting].student:
            return "students", setting
        owner = self.teachers[setting]
        assert owner is not None, setting
        return "teachers", owner

    def scores(self, setting: str) -> list[str]:
        """The scores of a row of Table I, a file per training."""
        return [self.evaluation(*self.scored(setting), *member) for member in self.members]

    def teacher_scores(self, setting: str) -> list[str]:
        """The scores of a row of the teachers' table: a file per training, then the ensemble's."""
        return [*(self.evaluation("teachers", setting, *one) for one in self.members), self.ensemble_score(setting)]

    @property
    def examples(self) -> str:
        """The example clips that the report shows: the first proposed student's, or the first training's."""
        shown = ("students", "proposed") if ("students", "proposed") in self.evaluations else self.evaluations[0]
        first = self.evaluation(*shown, *self.members[0])
        return first.removesuffix(".csv") + ".examples.npz"

    @property
    def step2_scores(self) -> list[str]:
        """Where Step 2's table finds its scores, by model."""
        return [f"{self.results}/evaluation/step2/{model}.csv" for model in self.config.models]

    @property
    def published_models(self) -> list[str]:
        """Models whose published Step 3 checkpoint can be scored here; none on the miniature, which has other classes.

        They are no part of a whole run: `snakemake results/published.csv` asks for them.
        """
        there = [] if self.config.miniature else self.config.published.external
        return [model for model in self.config.models if model in there]

    @property
    def published_scores(self) -> list[str]:
        """Where the table of the published models finds its scores, by model.

        On the miniature it is a missing file whose name says why: Snakemake prints the names of missing inputs, but a
        traceback for an error in a function.
        """
        scores = [f"{self.results}/evaluation/published/{model}.csv" for model in self.published_models]
        return scores or ["AudioSet Strong's evaluation clips, of which the miniature has none (leave out demo.yaml)"]

    @property
    def tasks(self) -> list[str]:
        """The downstream tasks of Table II."""
        return list(self.config.downstream.named)

    @property
    def downstream(self) -> list[str]:
        """The results of all downstream jobs."""
        steps = self.config.downstream.checkpoints
        return [self.transfer(t, m, step) for t in self.tasks for m in self.config.models for step in steps]

    @property
    def downstream_candidates(self) -> list[str]:
        """What each learning rate of the downstream jobs was worth: Table II's note points there."""
        return [path.removesuffix(".csv") + ".candidates.json" for path in self.downstream]

    def transfer(self, task: str, model: str, checkpoint: str) -> str:
        """The scores of one downstream task from one checkpoint of a model."""
        return f"{self.results}/downstream/{task}/{model}/{checkpoint}.csv"

    def block(self, stage: Searched, setting: str) -> Teacher | Student | Step2:
        """The teachers, or the students, of a setting that has them; Step 2."""
        if stage == "step2":
            return self.config.step2
        block = self.settings[setting]
        found = block.teacher if stage == "teachers" else block.student
        assert found is not None, (stage, setting)
        return found

    # The report -------------------------------------------------------------------------------------------------

    @property
    def evaluations(self) -> list[tuple[Stage, str]]:
        """(stage, setting) of all trainings of Step 3, whose scores the tables use."""
        teachers: list[tuple[Stage, str]] = [("teachers", setting) for setting in self.teacher_settings]
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

    @property
    def tried(self) -> list[str]:
        """The results of all searches."""
        return [p for stage in SEARCHED for s, m in self.searches(stage) for p in self.candidates(stage, s, m)]

    def report_inputs(self) -> dict[str, list[str]]:
        """Every file that the report reads."""
        folders = [folder for _, folder in self.trainings]
        scored = [self.evaluation(*stage, *member) for stage in self.evaluations for member in self.members]
        return {
            "tables": list(self.tables.values()),
            "evaluations": scored,
            "per_class": [path.removesuffix(".csv") + ".per_class.csv" for path in scored],
            "examples": [self.examples],
            "histories": [f"{folder}/{HISTORY}" for folder in folders],
            "costs": [*(f"{folder}/{SPEC}" for folder in folders), *self.tried],
            "coverage": self.coverage(*self.groups),
        }

    def benchmarks(self) -> list[tuple[str, str]]:
        """(stage, file) of Snakemake's benchmarks of all jobs but the report's."""
        config, models = self.config, self.config.models
        external = _logs(self.packs(self.step2_external), self.step2_external)
        trained = _logs(self.packs(models, config.seeds), models)
        alone = _logs(self.packs(models), models)
        names: dict[str, list[str]] = {
            "miniature": [part for part in ("audioset", *PAPER_TASKS) if config.miniature],
            "data": [
                "labels",
                *(["extra"] if self.extra else []),
                *(f"{name}/{group}" for name in ("clips", "gate") for group in self.groups),
                *(f"tasks/{task}" for task in self.tasks if task in PAPER_TASKS and not self.miniature(task)),
            ],
            "acquire": [store.removeprefix(f"{self.data}/store/")[:-3] for store in self.stores(*self.groups)],
            "untrained": alone if self.untrained else [],
            "step1": alone,
            "step2": [*_logs(self.packs(self.step2_trained), self.step2_trained), *(f"external/{n}" for n in external)],
            **{stage: [f"{s}/{name}" for s in self.settings_of(stage) for name in trained] for stage in STAGES},
            "weak_members": _logs(self.packs(self.weak_members), self.weak_members),
            "ensembles": [*self.teacher_settings, *(["step2/clips"] if self.weak_members else [])],
            "evaluation": [
                *(f"{stage}/{setting}/{name}" for stage, setting in self.evaluations for name in trained),
                *(f"ensembles/{setting}" for setting in self.teacher_settings),
                *(f"step2/{model}" for model in models if config.audioset.weak),
            ],
            "downstream": [
                f"{t}/{step}/{n}" for t in self.tasks for step in config.downstream.checkpoints for n in alone
            ],
            "tables": list(self.tables),
        }
        folder = f"{self.results}/benchmarks"
        return [(stage, f"{folder}/{stage}/{name}.tsv") for stage, found in names.items() for name in found]


def log_of(packs: Iterable[Pack], model: str, seed: int | None = None) -> str:
    """Log name of the job among `packs` that has this model and seed, without suffix."""
    for pack in packs:
        if (pack.models is None or model in pack.models) and (seed is None or seed in pack.seeds):
            return pack.log.replace("{model}", model)
    raise KeyError((model, seed))


def _logs(packs: Iterable[Pack], models: Iterable[str]) -> list[str]:
    """Log names of all jobs of `packs`."""
    return [pack.log.replace("{model}", model) for pack in packs for model in (models if pack.models is None else [""])]


def _cut(values: list[Any], size: int) -> list[list[Any]]:
    """`values` in lists of `size`; one empty list where there are none."""
    return [values[i : i + size] for i in range(0, len(values), size)] or [[]]


def inputs_of(folders: Iterable[str]) -> dict[str, list[str]]:
    """The files of checkpoints, as inputs of a job."""
    folders = list(folders)
    return {"weights": [f"{f}/{WEIGHTS}" for f in folders], "specs": [f"{f}/{SPEC}" for f in folders]}
