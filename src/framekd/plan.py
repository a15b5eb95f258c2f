"""Which files the graph makes, and what each job is told: the Snakefile's only helper.

Every stage is handed exactly its own part of the configuration, so that a change reruns what uses it and nothing else.
`VERSIONS` names the code of a stage: raise a number when its results change for the same configuration.
"""

from __future__ import annotations

from typing import Any

from framekd.config import LABEL_FILES, SEARCH, Config, HeadRecipe, Search, Student, Teacher, UserError

VERSIONS = {
    "miniature": 2,
    "acquire": 1,
    "step1": 1,
    "step2": 1,
    "teacher": 1,
    "search": 1,
    "ensemble": 1,
    "student": 1,
    "evaluate": 1,
    "downstream": 1,
    "tables": 1,
}


class Plan:
    """Paths and job parameters that follow from a configuration."""

    tasks = ("DESED", "DC16-T2", "MAESTRO")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = config.results_dir.rstrip("/")
        self.data = config.data_dir.rstrip("/")

    # Files ------------------------------------------------------------------------------------------------------

    @property
    def results_files(self) -> list[str]:
        """What a whole run leaves for people."""
        return [*self.tables, f"{self.results}/report.html"]

    @property
    def tables(self) -> list[str]:
        """The tables of a whole run; that of the teachers where there are any."""
        teachers = ["teachers.csv"] if self.teacher_settings else []
        return [f"{self.results}/{name}" for name in ("table1.csv", *teachers, "significance.csv", "table2.csv")]

    @property
    def labels(self) -> dict[str, str]:
        """The published label files: name → path."""
        return {name: f"{self.data}/labels/{file}" for name, file in LABEL_FILES.items()}

    @property
    def shards(self) -> list[str]:
        """Shards of the store, as their four digits."""
        return [f"{shard:04d}" for shard in range(self.config.audioset.download.shards)]

    @property
    def seed_packs(self) -> list[list[int]]:
        """The seeds, cut into what one job trains one after the other."""
        seeds, size = self.config.seeds, self.config.seeds_per_job
        return [seeds[i : i + size] for i in range(0, len(seeds), size)]

    @property
    def teacher_settings(self) -> list[str]:
        """Settings whose teachers are trained (equal teachers are trained once)."""
        return list(dict.fromkeys(filter(None, map(self.config.teachers_of, self.config.settings))))

    @property
    def student_settings(self) -> list[str]:
        """Settings that have students."""
        return [name for name in self.config.settings if self.config.setting(name).student]

    @property
    def step2_external(self) -> list[str]:
        """Models whose Step 2 checkpoint is a published one."""
        return [model for model in self.config.models if model not in self.config.step2.train]

    def miniature(self, part: str) -> list[str]:
        """The miniature that stands in for a data set (`audioset` or a task); none where the data are real."""
        return [f"{self.data}/miniature/{part}/summary.json"] if self.config.miniature else []

    def miniature_media(self) -> str | None:
        """The miniature's media, which a local server hands out in YouTube's place."""
        return f"{self.data}/miniature/audioset/media" if self.config.miniature else None

    def checkpoint(self, step: str, model: str) -> str:
        """Weights to start from: step1, step2 or full (the first seed of the students of a setting)."""
        if step == "full":
            return self.run("students", self.config.downstream.full_setting, model, self.config.seeds[0])
        return f"{self.results}/checkpoints/{step}/{model}/model.safetensors"

    def start(self, setting: str, model: str) -> str:
        """The checkpoint that a setting's trainings start from."""
        return self.checkpoint(self.config.setting(setting).start, model)

    def run(self, stage: str, setting: str, model: str, seed: int) -> str:
        """Weights of one training of Step 3."""
        return f"{self.results}/{stage}/{setting}/{model}/seed{seed}/model.safetensors"

    def runs(self, stage: str, setting: str) -> list[str]:
        """Weights of all trainings of a setting, by model and seed."""
        return [self.run(stage, setting, model, seed) for model in self.config.models for seed in self.config.seeds]

    def searches(self, stage: str) -> list[tuple[str, str]]:
        """(setting, model) of the teachers or students whose learning rate is searched; equal teachers search once."""
        settings = self.teacher_settings if stage == "teachers" else self.student_settings
        return [
            (setting, model)
            for setting in settings
            for model in self.config.models
            if self._stage(stage, setting).recipe.wanted_rate(model) == SEARCH
        ]

    def chosen_rate(self, stage: str, setting: str, model: str) -> list[str]:
        """The file with the learning rate that a search chose; none where the configuration gives the rate."""
        if self._stage(stage, setting).recipe.wanted_rate(model) != SEARCH:
            return []
        return [f"{self.results}/search/{stage}/{setting}/{model}.json"]

    def search_results(self, stage: str, setting: str, model: str) -> list[str]:
        """One file per rate of the grid."""
        grid = self._stage(stage, setting).search.grid
        return [f"{self.results}/search/{stage}/{setting}/{model}/{rate}/result.json" for rate in grid]

    def ensemble(self, setting: str) -> str | None:
        """The logits that a setting's students learn from; None if they learn from labels alone."""
        student = self.config.setting(setting).student
        if student is None or student.recipe.distillation_weight == 0:
            return None
        if file := student.soft_labels:
            return file.path or f"{self.data}/soft_labels/{file.name}"
        return f"{self.results}/ensembles/{self.config.teachers_of(setting)}.h5"

    def soft_labels(self, stage: str, setting: str) -> list[str]:
        """The file that the teachers (never) or students of a setting learn from, as an input of their trainings."""
        found = self.ensemble(setting) if stage == "students" else None
        return [found] if found else []

    def scores(self, setting: str) -> str:
        """Where Table I finds the scores of a setting: its students, or its teachers where it has none."""
        if self.config.setting(setting).student:
            return f"{self.results}/evaluation/students/{setting}.csv"
        return f"{self.results}/evaluation/teachers/{self.config.teachers_of(setting)}.csv"

    # Parameters -------------------------------------------------------------------------------------------------

    def resources(self, stage: str) -> dict[str, int]:
        """Memory (MB), wall time (minutes), GPUs and, of several, their one node."""
        need = self.config.resources[stage]
        out = {"mem_mb": need.mem_mb, "runtime": need.runtime}
        if need.gpu:
            out["gpu"] = need.gpu
        if need.gpu > 1:
            out["nodes"] = 1  # the processes that train together know one node
        return out

    def threads(self, stage: str) -> int:
        """CPU cores of a stage."""
        return self.config.resources[stage].threads

    def _recipe(self, recipe: HeadRecipe, model: str) -> dict[str, Any]:
        return {**recipe.model_dump(mode="json"), "learning_rate": recipe.wanted_rate(model)}

    def _stage(self, stage: str, setting: str) -> Teacher | Student:
        """The teachers or students of a setting, which has them."""
        block = self.config.setting(setting)
        found = block.teacher if stage == "teachers" else block.student
        assert found is not None, (stage, setting)
        return found

    def label_sources(self) -> dict[str, Any]:
        """Parameters of fetching the label files."""
        audioset = self.config.audioset
        directory = f"{self.data}/miniature/audioset/meta" if self.config.miniature else audioset.labels_dir
        return {"labels_url": audioset.labels_url, "labels_dir": directory}

    def clips(self) -> dict[str, Any]:
        """Parameters of listing the wanted clips."""
        block = self.config.audioset.model_dump(mode="json", include={"weak", "weak_splits", "expected_classes"})
        return {**block, "download": {"shards": self.config.audioset.download.shards}}

    @property
    def soft_files(self) -> list[str]:
        """Names of the files of soft labels that are fetched."""
        return list(self.config.soft_files())

    def soft_file(self, name: str) -> dict[str, Any]:
        """Parameters of fetching one of them."""
        return self.config.soft_files()[name].model_dump(mode="json", include={"url", "sha256"})

    def acquire(self) -> dict[str, Any]:
        """Parameters of getting the audio of a shard."""
        keys = {"folders", "hdf5", "encoding", "download"}
        return self.config.audioset.model_dump(mode="json", include=keys)

    def gate(self) -> dict[str, Any]:
        """Parameters of the check that stands before any training."""
        return self.config.audioset.model_dump(mode="json", include={"min_clips", "expected_classes"})

    def step1(self, model: str) -> dict[str, Any]:
        """Parameters of a Step 1 job."""
        step1, sizes = self.config.step1, self.config.model_sizes(model)
        if step1.source == "seed":
            return {"version": VERSIONS["step1"], "seed": step1.seed, "sizes": sizes}
        if model not in step1.external:
            line = f"step1: {{external: {{{model}: {{url: …}}}}}}"
            raise UserError(f"step1.external has no address for {model}; write {line}")
        return {"version": VERSIONS["step1"], "sizes": sizes, **step1.external[model].model_dump(mode="json")}

    def step2(self, model: str) -> dict[str, Any]:
        """Parameters of a Step 2 job: a training, or a published checkpoint."""
        step2, out = self.config.step2, {"version": VERSIONS["step2"], "sizes": self.config.model_sizes(model)}
        if model in step2.train:
            return {**out, "seed": step2.seed, "recipe": self._recipe(step2.recipe, model)}
        return {**out, **step2.external[model].model_dump(mode="json")}

    def teacher(self, setting: str, model: str) -> dict[str, Any]:
        """Parameters of a teacher's training."""
        teacher = self._stage("teachers", setting)
        assert isinstance(teacher, Teacher)
        return {
            "version": VERSIONS["teacher"],
            "sequence_model": teacher.sequence_model,
            "recipe": self._recipe(teacher.recipe, model),
        }

    def student(self, setting: str, model: str) -> dict[str, Any]:
        """Parameters of a student's training."""
        student = self._stage("students", setting)
        assert isinstance(student, Student)
        out = {"version": VERSIONS["student"], "recipe": self._recipe(student.recipe, model)}
        # A ready-made file was made from another lab's clips: those that it lacks train on their labels.
        return {**out, "missing_clips": "labels"} if student.soft_labels else out

    def search(self, stage: str, setting: str, model: str, rate: str) -> dict[str, Any]:
        """Parameters of the training of one rate of a search: the run's own, with the rate, and who judges it."""
        run = self.teacher(setting, model) if stage == "teachers" else self.student(setting, model)
        judge = self._judge(stage, setting)
        if judge["criterion"] == "psds1":
            judge |= {"median_seconds": self.config.evaluation.median_seconds}
        batch = {"batch_size": self.config.evaluation.batch_size}
        recipe = {**run["recipe"], "learning_rate": float(rate)}
        return {**run, "recipe": recipe, "search": {"version": VERSIONS["search"], **judge, **batch}}

    def choice(self, stage: str, setting: str) -> dict[str, Any]:
        """Parameters of choosing a rate."""
        return {"version": VERSIONS["search"], **self._judge(stage, setting)}

    def _judge(self, stage: str, setting: str) -> dict[str, Any]:
        search: Search = self._stage(stage, setting).search
        return search.model_dump(mode="json", exclude={"grid"})

    def evaluation(self) -> dict[str, Any]:
        """Parameters of scoring."""
        block = self.config.evaluation
        return {
            "version": VERSIONS["evaluate"],
            "median_seconds": block.median_seconds,
            "batch_size": block.batch_size,
            "expected_classes": self.config.audioset.expected_classes,
        }

    def significance(self) -> dict[str, Any]:
        """Parameters of the significance tests."""
        return self.config.evaluation.model_dump(include={"alpha", "comparisons", "epsilon"})

    def task(self, task: str, model: str) -> dict[str, Any]:
        """Parameters of a downstream job."""
        block = getattr(self.config.downstream, task.replace("-", "_"))
        values = block.model_dump(mode="json")
        for mode in ("frozen", "finetune"):
            values[mode] = self._recipe(getattr(block, mode), model)
        return {"version": VERSIONS["downstream"], "modes": self.config.downstream.modes, "options": values}

    @property
    def settings_table(self) -> dict[str, str]:
        """Setting → where Table I finds its scores."""
        return {setting: self.scores(setting) for setting in self.config.settings}

    @property
    def teachers_table(self) -> dict[str, str]:
        """Setting → where the teachers' table finds its scores."""
        return {setting: f"{self.results}/evaluation/teachers/{setting}.csv" for setting in self.teacher_settings}
