"""The stages of the paper: Step 1, Step 2, teachers, students, scoring, and the settings of Table I."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from framekd import releases
from framekd.config.base import Block, Seed, field
from framekd.config.recipe import (
    LI_ET_AL,
    STUDENT,
    TEACHER,
    WEAK,
    Recipe,
    Search,
    TeacherRecipe,
    WeakRecipe,
    WeakSearch,
    recipe_of,
)

MODELS = releases.MODELS
"""The five architectures of the paper, in the order of its tables."""


class External(Block):
    """A published checkpoint."""

    url: str = field("", "address")
    sha256: str | None = field(None, "expected SHA-256; null records what came")


def _external(variant: str) -> Any:
    found = [release for release in releases.RELEASES if release.variant == variant]
    return lambda: {release.model: External(url=release.published) for release in found}


class FrontEnds(Block):
    """Front ends: the default, or as the authors' released code. Every checkpoint records what it was made with."""

    atst_maximum: Literal["clip", "batch"] = field(
        "clip", "ATST-F: maximum that its 80-dB range counts from: the clip's, or the batch's as in the released code"
    )
    half_precision: bool = field(
        False, "fPaSST, M2D and ASiT: round to fp16 where the released code's autocast reaches their front ends"
    )
    m2d_norm_stats: Literal["fixed", "file"] = field(
        "fixed", "M2D: mean and deviation of its log-mel: -7.1 and 4.2 as in the released code, or the published file's"
    )

    def of(self, model: str) -> dict[str, Any]:
        """Switches of one model's front end that are not at their default; ``norm_stats: file`` is still to be read."""
        out: dict[str, Any] = {}
        if self.atst_maximum == "batch" and model in ("ATST-F", "tiny"):  # the two with this front end
            out["maximum"] = "batch"
        if self.half_precision and model in ("fPaSST", "M2D", "ASiT"):
            out["precision"] = "fp16"
        if self.m2d_norm_stats == "file" and model == "M2D":
            out["norm_stats"] = "file"
        return out


class Step1(Block):
    """Checkpoints that the pipeline starts from (Sec. 2, Step 1)."""

    source: Literal["external", "seed"] = field("external", "published checkpoints, or weights drawn from a seed")
    seed: int = field(0, "seed of the weights, for source: seed", **Seed)
    external: dict[str, External] = Field(default_factory=_external("ssl"), description="published Step 1 checkpoints")


class Published(Block):
    """The authors' checkpoints of Step 3, which `results/published.csv` scores on this site's evaluation clips."""

    external: dict[str, External] = Field(
        default_factory=_external("strong"), description="published Step 3 checkpoints"
    )
    clips: str | None = field(
        None,
        "list of the authors' evaluation clips, one a line (their resources/eval_durations.csv); "
        "the models are scored on those among ours too",
    )


class SoftFile(Block):
    """A file of soft labels: on this machine, or at an address. A student's has the layout of Zenodo 14626113."""

    path: str | None = field(None, "file on this machine")
    url: str | None = field(None, "address of the file itself, which is fetched to `data_dir`/soft_labels")
    sha256: str | None = field(None, "expected SHA-256 of a file that is fetched; null records what came")

    @model_validator(mode="after")
    def _one_source(self) -> SoftFile:
        if bool(self.path) == bool(self.url):
            raise ValueError("give either path or url; write {path: soft.h5, url: null}, or {url: …, path: null}")
        if self.path and self.sha256:
            raise ValueError("sha256 is for a url; a file at path is taken as it is, so write sha256: null")
        if self.url and not (urlsplit(self.url).scheme and self.name):
            raise ValueError(f"url {self.url!r} is no address that ends in a file name; write that of the file itself")
        return self

    @property
    def name(self) -> str:
        """File name at the end of the address, without what follows a question mark."""
        last = unquote(urlsplit(self.url or "").path).rsplit("/", 1)[-1]
        return last if re.fullmatch(r"\w[\w.+-]*", last) else ""

    @property
    def suffix(self) -> str:
        """What the file's name ends in, such as ".npy"."""
        return Path(self.path or self.name).suffix.lower()


_EFFICIENT_AT = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"


class ClipSoftLabels(Block):
    """Soft labels of whole clips: files, or models that are trained here on labels alone."""

    logits: SoftFile | None = field(
        None, "logits [clips, 527]: .npy with an index, or .h5 or .npz with `names` and `logits`"
    )
    index: SoftFile | None = field(
        None, "rows of .npy logits by YouTube id: a pickled dict (.pkl); null for .h5 and .npz"
    )
    members: list[str] = field([], "in place of files: models trained here on labels alone, whose logits are averaged")

    @model_validator(mode="after")
    def _one_source(self) -> ClipSoftLabels:
        if (self.logits is None) == (not self.members):
            raise ValueError("give either logits or members; with members, write logits: null, index: null")
        kind = self.logits.suffix if self.logits else ""
        if self.logits and kind not in (".npy", ".npz", ".h5", ".hdf5"):
            raise ValueError("logits has to end in .npy, .npz, .h5 or .hdf5")
        if kind == ".npy" and self.index is None:
            raise ValueError("logits in .npy have no names; give index: {path: fname_to_index.pkl} as well")
        if kind != ".npy" and self.index is not None:
            raise ValueError("index is for logits in .npy; write index: null")
        if len(set(self.members)) != len(self.members):
            raise ValueError("members names a model twice")
        return self

    @property
    def files(self) -> list[SoftFile]:
        """The logits and, of .npy, the index; none of members."""
        return [file for file in (self.logits, self.index) if file is not None]


def published_clip_labels() -> ClipSoftLabels:
    """The logits of a PaSST ensemble (mAP 49.5) that EfficientAT's routine learns from."""
    logits, index = (
        SoftFile(url=_EFFICIENT_AT + n) for n in ("passt_enemble_logits_mAP_495.npy", "fname_to_index.pkl")
    )
    return ClipSoftLabels(logits=logits, index=index)


class Step2(Block):
    """Training on AudioSet Weak (Sec. 2, Step 2)."""

    train: list[str] = field(
        ["fPaSST", "ASiT"], "models trained here; the others take published weak checkpoints (Sec. 3.2)"
    )
    external: dict[str, External] = Field(default_factory=_external("weak"), description="published Step 2 checkpoints")
    seed: int = field(0, "seed of the training", **Seed)
    soft_labels: ClipSoftLabels | None = Field(
        default_factory=published_clip_labels,
        description="what Step 2 learns from beside labels, where distillation_weight is above 0; null is nothing",
    )
    recipe: WeakRecipe = Field(
        default_factory=recipe_of(WeakRecipe, **WEAK), description="training on clip labels and soft labels"
    )
    search: WeakSearch = field(
        WeakSearch, "how its learning rate is chosen, where the recipe says `learning_rate: search`"
    )

    @model_validator(mode="after")
    def _possible(self) -> Step2:
        if self.soft_labels is None and self.distils(self.train):
            raise ValueError(
                "recipe.distillation_weight is above 0, but soft_labels is null; give soft labels, or write "
                "recipe: {distillation_weight: 0.0} to train on labels alone"
            )
        return self

    def distils(self, models: list[str]) -> bool:
        """Whether any of `models` learns from soft labels."""
        own = [(self.recipe.per_model.get(model) or {}) for model in models]
        return any(recipe.get("distillation_weight", self.recipe.distillation_weight) != 0 for recipe in own)


class Teacher(Block):
    """Step 3, first half: the ensemble's members."""

    sequence_model: Literal["bigru"] | None = field("bigru", "recurrent layers on top of the transformer; null is none")
    unrolled_gru: bool = field(
        False, "compute them in few large operations: faster where a CPU trains tiny models, equal to rounding"
    )
    recipe: TeacherRecipe = Field(
        default_factory=recipe_of(TeacherRecipe, **TEACHER), description="training of the teachers"
    )
    search: Search = field(Search, "how their learning rate is chosen, where the recipe says `learning_rate: search`")


class Student(Block):
    """Step 3, second half: one transformer distilled from the ensemble."""

    recipe: Recipe = Field(default_factory=recipe_of(Recipe, **STUDENT), description="training of the students")
    search: Search = field(Search, "how their learning rate is chosen, where the recipe says `learning_rate: search`")
    soft_labels: SoftFile | None = field(
        None, "a ready-made file to learn from, `{path: …}` or `{url: …, sha256: …}`; null is this run's own ensemble"
    )

    @model_validator(mode="after")
    def _possible(self) -> Student:
        if self.soft_labels and self.recipe.distillation_weight == 0:
            raise ValueError(
                "soft_labels is given, but recipe.distillation_weight is 0, so nothing would be learnt from it; "
                "write soft_labels: null or a distillation_weight such as 0.9"
            )
        return self


class Evaluation(Block):
    """Scoring on AudioSet Strong's evaluation clips (Sec. 3.3)."""

    median_seconds: float = field(0.48, "length of the median filter", ge=0)
    batch_size: int = field(256, "clips per forward pass", ge=1)
    alpha: float = field(0.05, "significance level of the ASO tests", gt=0, lt=1)
    comparisons: int = field(5, "comparisons that the level is corrected for (Bonferroni)", ge=1)
    subset: str | None = field(
        None, "subset of the evaluation clips that the tables show (miniature: heard or unheard); null is all of them"
    )
    cross_check: int = field(
        5, "classes that sed_scores_eval scores too; a difference over 1e-9 stops the run", inert=True, ge=0
    )
    epsilon: float = field(0.2, "largest eps_min that counts as significant", gt=0, le=0.5)


class Site(Block):
    """How a cluster is asked. A word as the site's documentation gives it; null leaves the choice to Slurm."""

    slurm_partition: str | None = field(None, "partition (sbatch -p)", pattern=r"^[\w.,-]+$")
    slurm_account: str | None = field(None, "account (sbatch -A)", pattern=r"^[\w.-]+$")
    qos: str | None = field(None, "quality of service (sbatch --qos)", pattern=r"^[\w.-]+$")
    constraint: str | None = field(None, "features of a node (sbatch -C)", pattern=r"^[\w.&|*\[\](),:-]+$")
    gpu_model: str | None = field(None, "type of GPU (sbatch --gpus=TYPE:1)", pattern=r"^[\w.]+$")

    def given(self) -> dict[str, str]:
        """The words that are given."""
        return {name: value for name in Site.model_fields if (value := getattr(self, name)) is not None}

    @model_serializer(mode="wrap")
    def _only_given(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Sites(Block):
    """Words of a cluster for all stages at once: those that ask for GPUs, and those that do not."""

    cpu: Site = field(Site, "stages without a GPU")
    gpu: Site = field(Site, "stages with one")


class Resources(Site):
    """What a job of one stage asks for; the cluster profile hands it on."""

    threads: int = field(1, "CPU cores", ge=1)
    mem_mb: int = field(4_000, "memory in MB", ge=100)
    runtime: int = field(60, "wall time in minutes", ge=1)
    gpu: int = field(0, "GPUs", ge=0)


class Tracking(Block):
    """Where Step 2 and Step 3 are shown while they train, beside history.jsonl; a change here reruns nothing."""

    tensorboard: bool = field(False, "TensorBoard event files in a folder `tensorboard` beside each training's output")
    wandb: str | None = field(None, "project of Weights & Biases; null is none")
    wandb_mode: Literal["online", "offline"] = field(
        "online", "offline keeps the runs beside the output, for `wandb sync` later, and needs no network"
    )


class Watch(Block):
    """Scores of a training while it runs, on clips that are held out of it."""

    every_epochs: int = field(5, "epochs between two scorings; 0 trains on all clips and scores none", ge=0)
    clips: int = field(
        500, "clips that are scored, a fixed sample: of the validation clips where there are any, else held out", ge=64
    )
    learnt_by: float = field(
        0.3,
        "share of the steps after which a training that is no better than a constant says so",
        inert=True,
        gt=0,
        le=1,
    )


def default_resources() -> dict[str, Resources]:
    gpu: dict[str, Any] = dict(threads=12, gpu=1)
    return {
        "labels": Resources(),
        "acquire": Resources(threads=2, mem_mb=4_000, runtime=1_440),
        "step1": Resources(mem_mb=8_000, runtime=60),
        "step2": Resources(**gpu, mem_mb=96_000, runtime=1_440),
        "teacher": Resources(**gpu, mem_mb=64_000, runtime=1_440),
        "ensemble": Resources(**gpu, mem_mb=64_000, runtime=720),
        "student": Resources(**gpu, mem_mb=64_000, runtime=1_440),
        "evaluate": Resources(**gpu, mem_mb=64_000, runtime=240),
        "downstream": Resources(**gpu, mem_mb=64_000, runtime=720),
        "table": Resources(mem_mb=8_000, runtime=30),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "li_et_al": {"start": "step1", "teacher": None, "student": {"recipe": LI_ET_AL, "soft_labels": None}},
    "proposed": {},
    "without_kd": {"teacher": {"sequence_model": None}, "student": None},
    "without_rnn": {"teacher": {"sequence_model": None}},
    "without_step2": {"start": "step1"},
}


class Setting(Block):
    """One row of Table I, resolved: where it starts, which teachers, which students."""

    start: Literal["step1", "step2"] = field("step2", "checkpoint that teachers and students start from")
    teacher: Teacher | None = field(Teacher, "the teachers; null is none")
    student: Student | None = field(Student, "the students; null scores the teachers themselves")

    @model_validator(mode="after")
    def _possible(self) -> Setting:
        if self.student is None and self.teacher is None:
            raise ValueError("has neither teacher nor student, so nothing to score")
        student = self.student
        distils = student and student.recipe.distillation_weight > 0 and student.soft_labels is None
        if distils and self.teacher is None:
            raise ValueError(
                "distils without teachers; write student: {recipe: {distillation_weight: 0.0}}, "
                "or student: {soft_labels: {path: …}} for a ready-made file"
            )
        return self
