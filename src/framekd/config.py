"""The configuration: one source of truth for defaults, schema, YAML and documentation.

The defaults of these models *are* the paper (Schmid et al., ICASSP 2025); ``config/config.yaml``, the JSON schema and
``docs/configuration.md`` are generated from them (see :mod:`framekd.configdocs`) and a test keeps them equal. Every
other configuration file states only its differences.
"""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MODELS = ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT")
"""The five architectures of the paper, in the order of its tables."""


class UserError(ValueError):
    """A mistake of the user's, told in one sentence: which file or key, what was expected, what to do."""


class Block(BaseModel):
    """A part of the configuration: unknown keys are refused, values are never changed in place."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def field(default: Any, description: str, **limits: Any) -> Any:
    """A key with its default and the sentence that documents it (with its source)."""
    if isinstance(default, (list, dict)):
        return Field(default_factory=lambda: copy.deepcopy(default), description=description, **limits)
    if isinstance(default, type) and issubclass(default, BaseModel):
        return Field(default_factory=default, description=description, **limits)
    return Field(default=default, description=description, **limits)


Probability = {"ge": 0.0, "le": 1.0}


class Augment(Block):
    """Augmentation of one training recipe; the default is none of it."""

    wavmix: float = field(0.0, "probability, per clip, of mixing in another clip's waveform", **Probability)
    wavmix_alpha: float = field(2.0, "Beta(a, a) of the waveform mixing weight", gt=0)
    frame_shift: float = field(0.0, "standard deviation of the circular time shift, as a share of the clip", ge=0, le=1)
    mixup: float = field(0.0, "probability, per batch, of mixup of log-mels and labels", **Probability)
    mixup_alpha: float = field(0.2, "Beta(a, a) of the mixup weight", gt=0)
    mixstyle: float = field(0.0, "probability, per batch, of Freq-MixStyle", **Probability)
    mixstyle_alpha: float = field(0.4, "Beta(a, a) of the Freq-MixStyle weight", gt=0)
    filter: float = field(0.0, "probability, per batch, of filter augmentation", **Probability)
    filter_db: float = field(6.0, "filter augmentation: gains between -this and +this dB", ge=0)
    filter_bands: tuple[int, int] = field((3, 5), "filter augmentation: least and most bands")
    filter_min_bins: int = field(6, "filter augmentation: least width of a band in mel bins", ge=1)
    freq_warp: float = field(0.0, "probability, per batch, of frequency warping (random resize and crop)", **Probability)
    freq_warp_min: float = field(0.6, "frequency warping: smallest share of the bins that is kept", gt=0, le=1)
    time_mask: float = field(0.0, "longest masked share of the clip; 0 is off", ge=0, lt=1)


class Recipe(Block):
    """One training: data order, augmentation, loss, optimiser and schedule."""

    epochs: int = field(30, "passes of epoch_clips draws", ge=1)
    epoch_clips: int = field(100_000, "clips drawn per epoch", ge=1)
    batch_size: int = field(256, "clips per step, over all devices", ge=1)
    learning_rate: float | dict[str, float] = field(1e-4, "peak learning rate; one number, or one per model")
    optimiser: Literal["adam", "adamw", "sgd"] = field("adam", "optimiser")
    betas: tuple[float, float] = field((0.9, 0.999), "Adam's betas")
    momentum: float = field(0.9, "SGD's momentum", ge=0, lt=1)
    weight_decay: float = field(0.0, "weight decay (AdamW: on tensors of two or more dimensions)", ge=0)
    layer_decay: float = field(1.0, "factor on the learning rate per layer, from the top down", gt=0, le=1)
    schedule: Literal["cosine", "exp_linear"] = field(
        "cosine", "shape of the learning rate after warm-up: cosine to 0, or EfficientAT's exponential-flat-linear"
    )
    warmup_steps: int = field(5_000, "steps of linear warm-up", ge=0)
    min_learning_rate: float = field(0.0, "where the cosine ends", ge=0)
    clip_gradient: float | None = field(None, "largest gradient norm; null is no clipping")
    sampler: Literal["uniform", "balanced"] = field("uniform", "how clips are drawn: all alike, or rare classes more")
    sampler_offset: float = field(30.0, "balanced sampling: weight of a class is 1000 / (offset + its count)", ge=0)
    replacement: bool = field(True, "balanced sampling draws with replacement (without, nothing is balanced)")
    distillation_weight: float = field(0.0, "share of the loss on the ensemble's soft labels", **Probability)
    head_init: Literal["default", "normal"] = field("default", "new heads: PyTorch's default, or N(0, 0.01) with bias 0")
    random_crop: bool = field(True, "clips longer than 10 s are cut at random in training, labels moved with the cut")
    precision: Literal["bf16", "fp16", "fp32"] = field("bf16", "arithmetic of forward and backward on a GPU (fp32 on a CPU)")
    compile: bool = field(False, "torch.compile the model")
    accumulate: int = field(1, "parts that a batch is cut into to fit the memory", ge=1)
    select: Literal["last", "best_loss"] = field("last", "which weights are kept: the last, or of the lowest validation loss")
    validation_share: float = field(0.0, "share of the training clips kept for the validation loss", ge=0, lt=1)
    validate_epochs: int = field(5, "epochs between validations", ge=1)
    patience: int | None = field(None, "validations without a better loss until training stops; null is never")
    augment: Augment = field(Augment, "augmentation")

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.select == "best_loss" and self.validation_share == 0:
            raise ValueError("select: best_loss needs validation clips; write validation_share: 0.05")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts")
        return self

    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.epoch_clips // self.batch_size)

    def rate(self, model: str) -> float:
        """Peak learning rate of `model`."""
        if isinstance(self.learning_rate, dict):
            if model not in self.learning_rate:
                raise UserError(f"learning_rate has no value for {model}; write learning_rate: {{{model}: 1.0e-4}}")
            return self.learning_rate[model]
        return self.learning_rate


def _recipe(**values: Any) -> Any:
    """A default recipe that differs from the general one in `values`."""
    return lambda: Recipe(**values)


WEAK = dict(
    epochs=130,
    epoch_clips=100_000,
    batch_size=256,
    learning_rate=2e-5,
    optimiser="adamw",
    weight_decay=1e-4,
    sampler="balanced",
    sampler_offset=100.0,
    replacement=False,
    augment=dict(mixup=1.0, mixup_alpha=0.3, wavmix=0.5),
)
TEACHER = dict(
    epochs=30,
    sampler="balanced",
    augment=dict(wavmix=1.0, frame_shift=0.125, mixup=0.3, mixstyle=0.3, filter=0.8, freq_warp=0.8),
)
STUDENT = dict(epochs=120, distillation_weight=0.9, augment=dict(mixup=0.3, wavmix=0.5))
LI_ET_AL = dict(
    epochs=100,
    optimiser="sgd",
    learning_rate=0.5,
    momentum=0.9,
    clip_gradient=3.0,
    warmup_steps=1_955,
    min_learning_rate=1e-6,
    head_init="normal",
    distillation_weight=0.0,
    validation_share=0.05,
    validate_epochs=1,
    select="best_loss",
    patience=10,
    augment=dict(mixup=0.0, wavmix=0.0),
)


class Download(Block):
    """Fetching what no local source has."""

    enabled: bool = field(True, "fetch clips that no folder or HDF5 file has")
    url: str = field("https://www.youtube.com/watch?v={ytid}", "page of a clip; {ytid} is its YouTube id")
    shards: int = field(200, "jobs that the clips are spread over, by a hash of their id", ge=1, le=2000)
    workers: int = field(2, "downloads at once within a job", ge=1, le=32)
    sections: bool = field(True, "fetch only the needed span where the host allows it")
    pause_seconds: float = field(3.0, "least pause of a worker between two downloads", ge=0)
    retries: int = field(3, "attempts at a clip within one run, for errors that pass", ge=1)
    timeout_seconds: float = field(30.0, "longest silence of a connection", gt=0)
    max_rate_limits: int = field(3, "rate-limit answers in a row after which a job stops", ge=1)
    cookies: str | None = field(None, "path of a cookies file of your own (its content is never logged)")
    proxy: str | None = field(None, "proxy address")


class AudioSet(Block):
    """AudioSet's labels and audio."""

    labels_url: dict[str, str] = field(
        {
            "balanced_train": "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/balanced_train_segments.csv",
            "unbalanced_train": "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/unbalanced_train_segments.csv",
            "eval": "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/eval_segments.csv",
            "class_labels": "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/class_labels_indices.csv",
            "train_strong": "http://storage.googleapis.com/us_audioset/youtube_corpus/strong/audioset_train_strong.tsv",
            "eval_strong": "http://storage.googleapis.com/us_audioset/youtube_corpus/strong/audioset_eval_strong.tsv",
            "mid_to_display_name": "http://storage.googleapis.com/us_audioset/youtube_corpus/strong/mid_to_display_name.tsv",
        },
        "addresses of the published label files",
    )
    labels_dir: str | None = field(None, "folder with local copies of the label files; null fetches them")
    folders: list[str] = field([], "folders of audio that are looked through before any download")
    hdf5: list[str] = field([], "HDF5 files of mp3 bytes (PaSST's layout) that are looked through before any download")
    expected_classes: tuple[int, int, int] | None = field(
        (447, 416, 407), "strong classes of train, eval and both (Sec. 3.1); null is whatever the files have"
    )
    weak_splits: list[str] = field(["balanced_train", "unbalanced_train"], "weak splits that Step 2 trains on")
    weak: bool = field(True, "acquire AudioSet Weak too; false when no Step 2 is trained here")
    encoding: Literal["pcm", "flac"] = field("pcm", "audio in the store: 16-bit PCM (fastest) or FLAC (half the size)")
    min_clips: int = field(1, "fewest clips a split must have before anything is trained on it", ge=1)
    download: Download = field(Download, "downloading")


class External(Block):
    """A published checkpoint."""

    url: str = field("", "address")
    sha256: str | None = field(None, "expected SHA-256; null records what came")


_RELEASES = "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
_RELEASE_NAMES = {"ATST-F": "ATST-F", "BEATs": "BEATs", "fPaSST": "fpasst", "M2D": "M2D", "ASiT": "ASIT"}


def _external(step: str) -> Any:
    return lambda: {m: External(url=f"{_RELEASES}{_RELEASE_NAMES[m]}_{step}.pt") for m in MODELS}


class Step1(Block):
    """Checkpoints that the pipeline starts from (Sec. 2, Step 1)."""

    source: Literal["external", "seed"] = field("external", "published checkpoints, or weights drawn from a seed")
    seed: int = field(0, "seed of the weights, for source: seed")
    external: dict[str, External] = Field(default_factory=_external("ssl"), description="published Step 1 checkpoints")


class Step2(Block):
    """Training on AudioSet Weak (Sec. 2, Step 2)."""

    train: list[str] = field(["fPaSST", "ASiT"], "models trained here; the others take published weak checkpoints (Sec. 3.2)")
    external: dict[str, External] = Field(default_factory=_external("weak"), description="published Step 2 checkpoints")
    seed: int = field(0, "seed of the training")
    recipe: Recipe = Field(default_factory=_recipe(**WEAK), description="training on clip labels")


class Teacher(Block):
    """Step 3, first half: the ensemble's members."""

    sequence_model: Literal["bigru"] | None = field("bigru", "recurrent layers on top of the transformer; null is none")
    recipe: Recipe = Field(default_factory=_recipe(**TEACHER), description="training of the teachers")


class Student(Block):
    """Step 3, second half: one transformer distilled from the ensemble."""

    recipe: Recipe = Field(default_factory=_recipe(**STUDENT), description="training of the students")


class Evaluation(Block):
    """Scoring on AudioSet Strong's evaluation clips (Sec. 3.3)."""

    median_seconds: float = field(0.48, "length of the median filter", ge=0)
    batch_size: int = field(256, "clips per forward pass", ge=1)
    alpha: float = field(0.05, "significance level of the ASO tests", gt=0, lt=1)
    comparisons: int = field(5, "comparisons that the level is corrected for (Bonferroni)", ge=1)
    epsilon: float = field(0.2, "largest eps_min that counts as significant", gt=0, le=0.5)


class Task(Block):
    """A downstream task of Table II."""

    data: str = field("", "folder of the task's data")
    seeds: list[int] = field([1, 2, 3, 4], "seeds (MAESTRO: ignored, one run a fold)")
    head: Literal["linear", "attention"] = field("linear", "head on top of the frozen or fine-tuned transformer")
    median_seconds: float = field(0.25, "median filter of the post-processing", ge=0)
    min_seconds: float = field(0.125, "shortest event that is kept", ge=0)
    frozen: Recipe = field(Recipe, "training of the head alone")
    finetune: Recipe = field(Recipe, "training of everything")


def _task(data: str, frozen: dict, finetune: dict, **values: Any) -> Any:
    return lambda: Task(data=data, frozen=Recipe(**frozen), finetune=Recipe(**finetune), **values)


_DESED = dict(epochs=100, epoch_clips=10_000, batch_size=256, warmup_steps=195, precision="bf16")
_DC16 = dict(epochs=300, epoch_clips=516, batch_size=256, warmup_steps=100)
_MAESTRO = dict(epochs=50, epoch_clips=5_400, batch_size=256, warmup_steps=100)


class Downstream(Block):
    """Table II: three tasks, frozen and fine-tuned, from three checkpoints (Sec. 4)."""

    checkpoints: list[Literal["step1", "step2", "full"]] = field(["step1", "step2", "full"], "checkpoints to start from")
    modes: list[Literal["frozen", "finetune"]] = field(["frozen", "finetune"], "ways to train")
    full_setting: str = field("proposed", "setting of Table I whose first seed is the `full` checkpoint")
    DESED: Task = Field(
        default_factory=_task(
            "data/desed",
            _DESED | dict(learning_rate=1e-3),
            _DESED | dict(learning_rate=1e-4, layer_decay=0.5),
            head="attention",
            median_seconds=0.28,
            min_seconds=0.0,
        ),
        description="DESED: PSDS1 with variance penalty, 10 classes",
    )
    DC16_T2: Task = Field(
        default_factory=_task(
            "data/dcase2016_task2",
            _DC16 | dict(epochs=500, learning_rate=0.2),
            _DC16 | dict(learning_rate=1.06e-4, optimiser="adamw", weight_decay=1e-3, augment=dict(mixup=0.5, wavmix=0.5, wavmix_alpha=0.2)),
        ),
        alias="DC16-T2",
        description="DCASE 2016 Task 2: onset F-measure at 50 ms, 11 classes",
    )
    MAESTRO: Task = Field(
        default_factory=_task(
            "data/maestro",
            _MAESTRO | dict(learning_rate=1e-3),
            _MAESTRO | dict(learning_rate=1e-4),
            seeds=[1],
            median_seconds=0.15,
            min_seconds=0.05,
        ),
        description="MAESTRO 5h: onset F-measure at 50 ms, 88 pitches, mean over 5 folds",
    )
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Miniature(Block):
    """The embedded data set that stands in for AudioSet and the downstream sets in the demo."""

    seed: int = field(0, "seed of the scenes")
    strong_train: int = field(240, "training clips with strong labels", ge=20)
    weak_only_train: int = field(120, "further training clips with weak labels only", ge=0)
    eval: int = field(100, "evaluation clips", ge=20)
    missing: float = field(0.02, "share of clips whose media are gone", ge=0, le=0.5)
    broken: float = field(0.01, "share of clips whose media are damaged", ge=0, le=0.5)
    desed: dict[str, int] = field({"weak": 60, "synthetic": 100, "validation": 60}, "clips of the miniature DESED")
    dcase16_files: int = field(10, "120-second files of the miniature DCASE 2016 Task 2", ge=5)
    maestro_files: int = field(9, "120-second files of the miniature MAESTRO", ge=3)
    maestro_folds: int = field(3, "folds of the miniature MAESTRO", ge=3)


class Resources(Block):
    """What a job of one stage asks for; the cluster profile hands it on."""

    threads: int = field(1, "CPU cores", ge=1)
    mem_mb: int = field(4_000, "memory in MB", ge=100)
    runtime: int = field(60, "wall time in minutes", ge=1)
    gpu: int = field(0, "GPUs", ge=0)


def _resources() -> dict[str, Resources]:
    gpu = dict(threads=12, gpu=1)
    return {
        "labels": Resources(),
        "acquire": Resources(threads=2, mem_mb=4_000, runtime=2_880),
        "step1": Resources(mem_mb=8_000, runtime=60),
        "step2": Resources(**gpu, mem_mb=96_000, runtime=5_760),
        "teacher": Resources(**gpu, mem_mb=64_000, runtime=1_440),
        "ensemble": Resources(**gpu, mem_mb=64_000, runtime=720),
        "student": Resources(**gpu, mem_mb=64_000, runtime=2_880),
        "evaluate": Resources(**gpu, mem_mb=64_000, runtime=240),
        "downstream": Resources(**gpu, mem_mb=64_000, runtime=720),
        "table": Resources(mem_mb=8_000, runtime=30),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "li_et_al": {"start": "step1", "teacher": None, "student": {"recipe": LI_ET_AL}},
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
        if self.student and self.student.recipe.distillation_weight > 0 and self.teacher is None:
            raise ValueError("distils without teachers; write student: {recipe: {distillation_weight: 0.0}}")
        return self


class Config(Block):
    """The whole configuration."""

    results_dir: str = field("results", "where results are written")
    data_dir: str = field("data", "where audio and labels are kept")
    models: list[str] = field(list(MODELS), "architectures")
    seeds: list[int] = field([1, 2, 3], "seeds of each experiment (Sec. 3.4)")
    seeds_per_job: int = field(1, "seeds trained one after the other in one job", ge=1)
    sizes: dict[str, dict[str, Any]] = field({}, "per model, sizes that differ from the paper's (`all` is for every model)")
    audioset: AudioSet = field(AudioSet, "AudioSet's labels and audio")
    step1: Step1 = field(Step1, "Step 1: external checkpoints")
    step2: Step2 = field(Step2, "Step 2: AudioSet Weak")
    teacher: Teacher = field(Teacher, "Step 3: teachers")
    student: Student = field(Student, "Step 3: students")
    settings: dict[str, dict[str, Any]] = field(SETTINGS, "rows of Table I, each as its difference from `proposed`")
    evaluation: Evaluation = field(Evaluation, "scoring")
    downstream: Downstream = field(Downstream, "Table II")
    miniature: Miniature | None = field(None, "the embedded miniature instead of AudioSet; null is the real data")
    resources: dict[str, Resources] = Field(default_factory=_resources, description="resources per stage")

    @model_validator(mode="after")
    def _agree(self) -> Config:
        for name in self.step2.train:
            if name not in MODELS and name not in self.models:
                raise ValueError(f"step2.train names {name!r}, which is none of {', '.join(self.models)}")
        for name in self.models:
            if name not in self.step2.train and name not in self.step2.external:
                raise ValueError(f"step2: {name} is neither in step2.train nor in step2.external")
        for name in self.settings:
            self.setting(name)
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError("seeds must be different numbers, at least one; write seeds: [1, 2, 3]")
        if self.downstream.full_setting not in self.settings:
            raise ValueError(f"downstream.full_setting {self.downstream.full_setting!r} is none of {list(self.settings)}")
        return self

    def setting(self, name: str) -> Setting:
        """Setting `name` of Table I: the base blocks with its differences laid over."""
        if name not in self.settings:
            raise UserError(f"settings has no {name!r}; it has {', '.join(self.settings)}")
        base = {"start": "step2", "teacher": self.teacher.model_dump(), "student": self.student.model_dump()}
        try:
            return Setting.model_validate(merge(base, self.settings[name]))
        except ValidationError as error:
            raise UserError(explain(error, Setting, prefix=("settings", name))) from None

    def teachers_of(self, name: str) -> str | None:
        """The first setting that has the same teachers as `name`: equal teachers are trained once."""
        wanted = self.setting(name)
        if wanted.teacher is None:
            return None
        for other in sorted(self.settings, key=lambda n: (n != "proposed", n.startswith("without_kd"))):
            found = self.setting(other)
            if found.teacher == wanted.teacher and found.start == wanted.start:
                return other
        raise AssertionError("a setting has its own teachers")

    def model_sizes(self, model: str) -> dict[str, Any]:
        """Sizes of `model` that differ from the paper's."""
        return {**self.sizes.get("all", {}), **self.sizes.get(model, {})}


def merge(base: dict[str, Any], difference: dict[str, Any]) -> dict[str, Any]:
    """`base` with `difference` laid over it, key by key; null and lists replace whole."""
    out = copy.deepcopy(base)
    for key, value in difference.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else copy.deepcopy(value)
    return out


def _children(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The configuration blocks inside a type such as ``Teacher | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for part in get_args(annotation) for block in _blocks(part)]


def _at(model: type[BaseModel], path: tuple) -> type[BaseModel] | None:
    """The block that holds the last key of `path`."""
    block: type[BaseModel] | None = model
    for key in path[:-1]:
        info = _children(block).get(key) if block else None
        if info is None:
            continue  # a name of the user's, as in settings or external
        found = _blocks(info.annotation)
        block = found[0] if found else None
    return block


def _line(path: tuple, value: Any) -> str:
    """The YAML that sets `path` to `value`, on one line."""
    text = {True: "true", False: "false", None: "null"}.get(value, value) if isinstance(value, bool | None) else value
    keys = [str(key) for key in path]
    return "{" * 0 + ": {".join(keys) + f": {text}" + "}" * (len(keys) - 1)


def explain(error: ValidationError, model: type[BaseModel], *, prefix: tuple = ()) -> str:
    """One sentence per mistake: the path of the key, what was expected and the line to write."""
    out = []
    for item in error.errors():
        path = tuple(key for key in item["loc"] if key not in ("function-after", "tuple", "int", "float"))
        name = ".".join(map(str, (*prefix, *path)))
        block = _at(model, path)
        known = _children(block) if block else {}
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), list(known), n=1, cutoff=0.5)
            where = ".".join(map(str, (*prefix, *path[:-1]))) or "the configuration"
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}."
            out.append(f"{name} is not a key of {where}; {hint}")
            continue
        expected = item["msg"].removeprefix("Value error, ")
        expected = expected[0].lower() + expected[1:] if expected.startswith(("Input", "Value")) else expected
        sentence = f"{name or 'the configuration'}: {expected}"
        if item["type"] != "value_error":
            sentence += f", but it is {item['input']!r}"
            info = known.get(str(path[-1])) if path else None
            if info is not None and not info.is_required():
                sentence += f"; write, for instance, {_line((*prefix, *path), info.get_default(call_default_factory=True))}"
        out.append(sentence)
    return "\n".join(out)


def load(values: dict[str, Any], *, source: str = "configuration") -> Config:
    """Check `values` (as YAML gives them) and fill in the paper's numbers; mistakes are a :class:`UserError`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: " + explain(error, Config)) from None


def load_files(*paths: str | Path) -> Config:
    """The configuration of `paths`, later files laid over earlier ones."""
    import yaml

    values: dict[str, Any] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{path}: no such configuration file")
        try:
            read = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not YAML: {str(error).splitlines()[-1].strip()}") from None
        if not isinstance(read, dict):
            raise UserError(f"{path}: expected keys and values, such as `seeds: [1, 2, 3]`")
        values = merge(values, read)
    return load(values, source=", ".join(map(str, paths)))
