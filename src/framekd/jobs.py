"""What each job of the graph is: frozen, complete values that the plan builds and a script reads once.

A job holds every number that its stage uses, so that nothing gets a default on the way. Snakemake compares
:func:`framekd.config.identity` of it with that of the last run: a change of any key but the inert ones (workers,
time-outs, logging) reruns the job.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializeAsAny

from framekd.config import (
    Config,
    DesedData,
    DesedTask,
    Download,
    External,
    HearData,
    OwnTask,
    Recipe,
    Search,
    Task,
    Tracking,
    Watch,
    WeakRecipe,
    WeakSearch,
)
from framekd.config.base import Block, field

Stage = Literal["teachers", "students"]
Group = Literal["strong", "eval", "weak"]
Step = Literal["untrained", "step1", "step2", "step3"]
Searched = Literal["step2", "teachers", "students"]
Table = Literal["table1", "teachers", "table2", "step2", "published"]


class Job(Block):
    """A job. `version` names the code of its stage: see :mod:`framekd.versions`."""

    version: int


class MiniatureJob(Job):
    """Build one data set of the embedded miniature: `part` is "audioset" or a downstream task."""

    part: str
    seed: int
    counts: dict[str, int | float]


class LabelsJob(Job):
    """Fetch AudioSet's label files, or copy them from `directory`."""

    urls: dict[str, str]
    directory: str | None
    sha256: dict[str, str] = field({}, "expected sums", inert=True)


class ClipsJob(Job):
    """List the wanted clips of one group."""

    group: Group
    weak_splits: list[str]
    expected_classes: tuple[int, int, int] | None
    shards: int


class AcquireJob(Job):
    """Get the audio of one shard. `media` is a folder that a local server publishes in place of YouTube."""

    shard: int
    folders: list[str]
    hdf5: list[str]
    encoding: Literal["pcm", "flac"]
    download: Download
    media: str | None


class GateJob(Job):
    """Count what was acquired of the published lists `splits`, and stop if it is too little."""

    splits: list[str]
    min_share: float


class ExtraJob(Job):
    """Store own recordings of the folder `audio` as clips."""

    audio: str
    encoding: Literal["pcm", "flac"]


class TaskDataJob(Job):
    """Make the folder of a downstream task (unless `fetch` is None: somebody else filled it), and count what it has."""

    task: str
    folder: str
    fetch: HearData | DesedData | None
    public: bool = field(False, "whether DESED's public evaluation set is part of it", json_schema_extra={"late": True})
    counts: dict[str, int | None] = field({}, "published numbers that it is compared with", inert=True)
    min_share: float = field(0.9, "least share of DESED's real clips", inert=True)
    download: Download | None
    downloads: str = field("", "folder that keeps fetched files", inert=True)
    work: str = field("", "folder that keeps DESED's real clips", inert=True)


class CheckpointJob(Job):
    """Make checkpoints from published files, or (where `published` has no entry for a model) from a seed."""

    step: Step
    models: list[str] = field([], "in the order of the outputs", inert=True)
    sizes: dict[str, dict[str, Any]]
    front_ends: dict[str, dict[str, Any]]
    published: dict[str, External]
    seed: int | None
    downloads: str = field("", "folder that keeps fetched files", inert=True)
    served: str | None = field(None, "folder that a local server publishes, at the port in an address", inert=True)


class Step2Job(Job):
    """Train models on AudioSet Weak, one after the other."""

    recipes: dict[str, WeakRecipe]
    seed: int
    watch: Watch = Watch(every_epochs=0)
    tracking: Tracking = field(Tracking, "where the trainings are shown", inert=True)
    audio_on: Literal["host", "device", "auto"] = field("auto", "where audio and soft labels are kept", inert=True)


class TrainJob(Job):
    """Train teachers or students of one setting: every model of `recipes` with every one of `seeds`.

    A recipe whose learning rate is "search" takes the rate from the file that the search wrote.
    """

    stage: Stage
    recipes: dict[str, Recipe]
    seeds: list[int] = field([], "in the order of the outputs", inert=True)
    sequence_model: Literal["bigru"] | None
    unrolled_gru: bool
    missing_clips: Literal["refuse", "labels"]
    watch: Watch = Watch(every_epochs=0)
    watch_median_seconds: float = field(0.48, "median filter of the scores of a watched training", inert=True)
    tracking: Tracking = field(Tracking, "where the trainings are shown", inert=True)
    audio_on: Literal["host", "device", "auto"] = field("auto", "where audio and soft labels are kept", inert=True)


class SearchJob(Job):
    """Train one model at one learning rate, and judge it on clips that it has not seen."""

    train: TrainJob | Step2Job
    model: str
    search: Search | WeakSearch
    median_seconds: float | None  # of PSDS1; None for Step 2
    batch_size: int


class ChooseJob(Job):
    """Choose the best of the rates that were tried."""

    search: Search | WeakSearch


class EnsembleJob(Job):
    """Average the logits of teachers."""

    batch_size: int


class WeakEnsembleJob(Job):
    """Average the clip logits of models that were trained on AudioSet Weak's labels alone."""


class SoftLabelsJob(Job):
    """Fetch a ready-made file of soft labels."""

    url: str
    sha256: str | None


class EvaluateJob(Job):
    """Score models of a setting, each by itself; or (stage "ensembles") the average of all its teachers."""

    stage: Literal["teachers", "students", "ensembles"]
    setting: str
    models: list[tuple[str, int]] = field([], "(model, seed) in the order of the inputs", inert=True)
    subset: str | None
    median_seconds: float
    batch_size: int
    cross_check: int = field(0, "classes that sed_scores_eval scores too", inert=True)


class EvaluateStep2Job(Job):
    """Score the clip predictions of one model's Step 2 checkpoint on AudioSet Weak's evaluation clips."""

    model: str
    source: Literal["trained here", "published"]
    batch_size: int


class EvaluatePublishedJob(Job):
    """Score the published Step 3 checkpoint of one model on the evaluation clips of AudioSet Strong."""

    model: str
    median_seconds: float
    batch_size: int
    cross_check: int = field(0, "classes that sed_scores_eval scores too", inert=True)


class DownstreamJob(Job):
    """Train and score one downstream task from one checkpoint of each model of `options`."""

    task: str
    checkpoint: Literal["untrained", "step1", "step2", "full"]
    modes: list[Literal["frozen", "finetune", "constant"]]
    options: dict[str, SerializeAsAny[Task | OwnTask | DesedTask]]


class TableJob(Job):
    """Write a table of the paper from the scores of `settings`, as many files each (Table II: of its tasks; Step 2
    and the published models: of each model)."""

    table: Table
    settings: list[str]
    miniature: bool


class SignificanceJob(Job):
    """Test the gaps of Table I for significance."""

    settings: list[str]
    alpha: float
    comparisons: int
    epsilon: float


class ReportJob(Job):
    """Write the report. The lists name the files of the inputs, in their order."""

    config: Config
    tables: list[str]
    evaluations: list[tuple[str, str]]
    histories: list[tuple[str, str, str, str]]
    costs: list[str]
    benchmarks: list[tuple[str, str]] = field([], "(stage, Snakemake's benchmark file)", inert=True)
