"""The graph as jobs: what each one is (:mod:`framekd.jobs`) and what it asks a cluster for. The Snakefile uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framekd import jobs
from framekd.config import DesedData, HearData, Recipe, Step2, Student, Teacher, UserError, Watch, identity
from framekd.graph import Graph, Pack
from framekd.labels.extra import find_audio, read_extra
from framekd.versions import VERSIONS


class Plan(Graph):
    """Paths and jobs that follow from a configuration."""

    # What a job asks for ----------------------------------------------------------------------------------------

    def threads(self, stage: str) -> int:
        """CPU cores of a stage."""
        return self.config.resources[stage].threads

    def resources(self, stage: str) -> dict[str, int | str]:
        """Memory (MB), wall time (minutes), GPUs and a site's words of a stage; several GPUs are on one node."""
        need = self.config.resources[stage]
        words = (self.config.site.gpu if need.gpu else self.config.site.cpu).given() | need.given()
        if not need.gpu:
            words.pop("gpu_model", None)
        out: dict[str, int | str] = {"mem_mb": need.mem_mb, "runtime": need.runtime, **words}
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

    def miniature_job(self, wildcards: Any) -> jobs.MiniatureJob:
        size = self.config.miniature
        assert size is not None
        counts: dict[str, dict[str, int | float]] = {
            "audioset": {
                "n_strong_train": size.strong_train,
                "n_weak_only_train": size.weak_only_train,
                "n_heard": size.heard,
                "n_unheard": size.unheard,
                "missing": size.missing,
                "broken": size.broken,
            },
            "DESED": {f"n_{name}": count for name, count in size.desed},
            "DC16-T2": {"n_files": size.dcase16_files},
            "MAESTRO": {"n_files": size.maestro_files, "n_folds": size.maestro_folds},
        }
        part, version = wildcards.part, VERSIONS["miniature"]
        return jobs.MiniatureJob(version=version, part=part, seed=size.seed, counts=counts[part])

    def labels_job(self, wildcards: Any) -> jobs.LabelsJob:
        audioset = self.config.audioset
        directory = f"{self.data}/miniature/audioset/meta" if self.config.miniature else audioset.labels_dir
        return jobs.LabelsJob(
            version=VERSIONS["acquire"], urls=audioset.labels_url, directory=directory, sha256=audioset.labels_sha256
        )

    def clips_job(self, wildcards: Any) -> jobs.ClipsJob:
        audioset = self.config.audioset
        return jobs.ClipsJob(
            version=VERSIONS["acquire"],
            group=wildcards.group,
            weak_splits=audioset.weak_splits if wildcards.group == "weak" else [],
            expected_classes=audioset.expected_classes,
            shards=audioset.download.shards[wildcards.group],
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

    def gate_job(self, wildcards: Any) -> jobs.GateJob:
        audioset, group = self.config.audioset, wildcards.group
        lists = {"strong": ["strong_train"], "eval": ["strong_eval"]}.get(
            group, [f"weak_{name}" for name in [*audioset.weak_splits, "eval"]]
        )
        return jobs.GateJob(version=VERSIONS["acquire"], splits=lists, min_share=audioset.min_share)

    def extra_audio(self, wildcards: Any) -> list[str]:
        """The own recordings that the labels name."""
        extra = self.config.audioset.extra
        assert extra is not None
        return [str(path) for path in find_audio(read_extra(extra.labels), extra.audio).values()]

    def extra_job(self, wildcards: Any) -> jobs.ExtraJob:
        audioset = self.config.audioset
        assert audioset.extra is not None
        return jobs.ExtraJob(version=VERSIONS["acquire"], audio=audioset.extra.audio, encoding=audioset.encoding)

    def task_data_job(self, wildcards: Any) -> jobs.TaskDataJob:
        downstream, task = self.config.downstream, wildcards.task
        fetch = downstream.fetch.of(task) if self.fetched(task) else None
        if isinstance(fetch, HearData) and fetch.take == "prepared":
            fetch = fetch.model_copy(update={"original": {}})
        return jobs.TaskDataJob(
            version=VERSIONS["task_data"],
            task=task,
            folder=downstream.named[task].data,
            fetch=fetch,
            public=downstream.public(task),
            counts=downstream.counts.get(task) or {},
            min_share=downstream.min_share,
            download=self.config.audioset.download if isinstance(fetch, DesedData) else None,
            downloads=f"{self.data}/archives/{task}",
            work=f"{self.data}/tasks/{task}/clips",
        )

    def checkpoint_job(self, wildcards: Any, step: jobs.Step, pack: Pack) -> jobs.CheckpointJob:
        config = self.config
        external = {"step1": config.step1.external, "step2": config.step2.external, "step3": config.published.external}
        key = {"step3": "published"}.get(step, step)
        models = pack.of(wildcards)
        drawn = step == "untrained" or (step == "step1" and config.step1.source == "seed")
        published = {} if drawn else external[step]
        for model in [] if drawn else models:
            if model not in published:
                line = f"{key}: {{external: {{{model}: {{url: …}}}}}}"
                raise UserError(f"{key}.external has no address for {model}; write {line}")
        return jobs.CheckpointJob(
            version=VERSIONS["checkpoint"],
            step=step,
            models=models,
            sizes={model: self.config.model_sizes(model) for model in models},
            front_ends={model: self.config.front_ends.of(model) for model in models},
            published={model: published[model] for model in models if model in published},
            seed=None if published else self.config.step1.seed,
            downloads=f"{self.data}/checkpoints",
            served="miniature/checkpoints" if self.config.miniature else None,
        )

    def step2_job(self, wildcards: Any, pack: Pack) -> jobs.Step2Job:
        step2 = self.config.step2
        return jobs.Step2Job(
            version=VERSIONS["train"],
            recipes={model: step2.recipe.of(model) for model in pack.of(wildcards)},
            seed=step2.seed,
            watch=self.config.watch,
            tracking=self.config.tracking,
            audio_on=self.config.audio_on,
        )

    def weak_member_job(self, wildcards: Any, pack: Pack) -> jobs.Step2Job:
        job = self.step2_job(wildcards, pack)
        on_labels = {name: r.model_copy(update={"distillation_weight": 0.0}) for name, r in job.recipes.items()}
        return job.model_copy(update={"recipes": on_labels})

    def weak_ensemble_job(self, wildcards: Any) -> jobs.WeakEnsembleJob:
        return jobs.WeakEnsembleJob(version=VERSIONS["ensemble"])

    def train_job(self, wildcards: Any, stage: jobs.Stage, pack: Pack) -> jobs.TrainJob:
        block = self.block(stage, wildcards.setting)
        assert not isinstance(block, Step2)
        whole = Recipe(**block.recipe.model_dump())  # a teacher's recipe has no distillation
        ready_made = isinstance(block, Student) and block.soft_labels is not None
        return jobs.TrainJob(
            version=VERSIONS["train"],
            stage=stage,
            recipes={model: whole.of(model) for model in pack.of(wildcards)},
            seeds=list(pack.seeds),
            sequence_model=block.sequence_model if isinstance(block, Teacher) else None,
            unrolled_gru=isinstance(block, Teacher) and block.unrolled_gru,
            # Another site made a ready-made file from its own clips: ours that it lacks are trained on labels.
            missing_clips="labels" if ready_made else "refuse",
            watch=self.config.watch,
            watch_median_seconds=self.config.evaluation.median_seconds,
            tracking=self.config.tracking,
            audio_on=self.config.audio_on,
        )

    def search_job(self, wildcards: Any, stage: jobs.Searched) -> jobs.SearchJob:
        pack, own = Pack("", (wildcards.model,)), {"learning_rate": float(wildcards.rate)}
        search = self.block(stage, wildcards.setting).search.model_copy(update={"grid": [float(wildcards.rate)]})
        train: jobs.Step2Job | jobs.TrainJob
        if stage != "step2":
            train = self.train_job(wildcards, stage, pack)
        else:
            build = self.step2_job if wildcards.setting == "trained" else self.weak_member_job
            train = build(wildcards, pack).model_copy(update={"seed": search.seed})
        recipe = train.recipes[wildcards.model].model_copy(update=own)
        return jobs.SearchJob(
            version=VERSIONS["search"],
            train=train.model_copy(update={"recipes": {wildcards.model: recipe}, "watch": Watch(every_epochs=0)}),
            model=wildcards.model,
            search=search,
            median_seconds=None if stage == "step2" else self.config.evaluation.median_seconds,
            batch_size=self.config.evaluation.batch_size,
        )

    def choose_job(self, wildcards: Any, stage: jobs.Searched) -> jobs.ChooseJob:
        return jobs.ChooseJob(version=VERSIONS["search"], search=self.block(stage, wildcards.setting).search)

    def ensemble_job(self, wildcards: Any) -> jobs.EnsembleJob:
        return jobs.EnsembleJob(version=VERSIONS["ensemble"], batch_size=self.config.evaluation.batch_size)

    def soft_labels_job(self, wildcards: Any) -> jobs.SoftLabelsJob:
        file = self.config.soft_files()[wildcards.file]
        assert file.url is not None
        return jobs.SoftLabelsJob(version=VERSIONS["acquire"], url=file.url, sha256=file.sha256)

    def evaluate_job(self, wildcards: Any, pack: Pack | None = None) -> jobs.EvaluateJob:
        """Scores of the trainings of a pack; without a pack, of the ensemble of a setting's teachers."""
        block = self.config.evaluation
        return jobs.EvaluateJob(
            version=VERSIONS["evaluate"],
            stage=wildcards.stage if pack else "ensembles",
            setting=wildcards.setting,
            models=pack.members(wildcards) if pack else self.members,
            subset=block.subset,
            median_seconds=block.median_seconds,
            batch_size=block.batch_size,
            cross_check=block.cross_check,
        )

    def evaluate_step2_job(self, wildcards: Any) -> jobs.EvaluateStep2Job:
        return jobs.EvaluateStep2Job(
            version=VERSIONS["evaluate"],
            model=wildcards.model,
            source="trained here" if wildcards.model in self.step2_trained else "published",
            batch_size=self.config.evaluation.batch_size,
        )

    def evaluate_published_job(self, wildcards: Any) -> jobs.EvaluatePublishedJob:
        block = self.config.evaluation
        return jobs.EvaluatePublishedJob(
            version=VERSIONS["published"],
            model=wildcards.model,
            median_seconds=block.median_seconds,
            batch_size=block.batch_size,
            cross_check=block.cross_check,
        )

    def downstream_job(self, wildcards: Any, pack: Pack) -> jobs.DownstreamJob:
        block = self.config.downstream.named[wildcards.task]
        untrained = wildcards.checkpoint == "untrained"
        return jobs.DownstreamJob(
            version=VERSIONS["downstream"],
            task=wildcards.task,
            checkpoint=wildcards.checkpoint,
            modes=["frozen", "constant"] if untrained else [*self.config.downstream.modes],
            options={model: block.of(model) for model in pack.of(wildcards)},
        )

    def table_job(self, wildcards: Any, table: jobs.Table) -> jobs.TableJob:
        settings = {"table1": list(self.settings), "teachers": self.teacher_settings}.get(table, [])
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

    def report_job(self, wildcards: Any) -> jobs.ReportJob:
        stages = [name[0] for name, _ in self.trainings]
        return jobs.ReportJob(
            version=VERSIONS["report"],
            config=self.config,
            tables=list(self.tables),
            evaluations=[stage for stage in self.evaluations for _ in self.members],
            histories=[name for name, _ in self.trainings],
            costs=[*stages, *("search" for _ in self.tried)],
            benchmarks=self.benchmarks(),
        )
