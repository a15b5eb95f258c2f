"""A training recipe, and the four that the paper uses."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError, field_validator, model_validator

from framekd.config.base import Block, Probability, Seed, UserError, explain, field, merge, shown

SEARCH: Literal["search"] = "search"
"""What a recipe says in place of a learning rate, to have it chosen from a grid."""
LARGEST_RATE = 10.0
"""Learning rate above which a number is a mistake."""


class Augment(Block):
    """Augmentation of one training recipe; the default is none of it."""

    wavmix: float = field(0.0, "probability, per clip, of mixing in another clip's waveform", **Probability)
    wavmix_alpha: float = field(2.0, "Beta(a, a) of the waveform mixing weight", gt=0)
    gain_db: float = field(0.0, "gain of each waveform, drawn between -this and +this dB; 0 is off", ge=0)
    frame_shift: float = field(0.0, "standard deviation of the circular time shift, as a share of the clip", ge=0, le=1)
    mixup: float = field(0.0, "probability, per batch, of mixup of log-mels and labels", **Probability)
    mixup_alpha: float = field(0.2, "Beta(a, a) of the mixup weight", gt=0)
    mixstyle: float = field(0.0, "probability, per batch, of Freq-MixStyle", **Probability)
    mixstyle_alpha: float = field(0.4, "Beta(a, a) of the Freq-MixStyle weight", gt=0)
    filter: float = field(0.0, "probability, per batch, of filter augmentation", **Probability)
    filter_db: float = field(6.0, "filter augmentation: gains between -this and +this dB", ge=0)
    filter_bands: tuple[int, int] = field((3, 5), "filter augmentation: least and most bands")
    filter_min_bins: int = field(6, "filter augmentation: least width of a band in mel bins", ge=1)
    freq_warp: float = field(
        0.0, "probability, per batch, of frequency warping (random resize and crop)", **Probability
    )
    freq_warp_min: float = field(0.6, "frequency warping: smallest share of the bins that is kept", gt=0, le=1)
    time_mask: float = field(0.0, "longest masked share of the clip; 0 is off", ge=0, lt=1)


class HeadRecipe(Block):
    """Training of heads on a frozen transformer: what every training has, and nothing that acts on the transformer."""

    ELSEWHERE: ClassVar[frozenset[str]] = frozenset()  # keys of other trainings' recipes, for error messages

    epochs: int = field(30, "passes of epoch_clips draws", ge=1, le=100_000)
    epoch_clips: int = field(100_000, "clips drawn per epoch", ge=1, le=100_000_000)
    batch_size: int = field(256, "clips per step, over all devices", ge=1, le=1_000_000)
    learning_rate: float | Literal["search"] | dict[str, float | Literal["search"]] = field(
        1e-4, "peak learning rate; one number, or one per model; `search` tries the grid of the stage or task"
    )
    optimiser: Literal["adam", "adamw", "sgd"] = field("adam", "optimiser")
    betas: tuple[float, float] = field((0.9, 0.999), "Adam's betas")
    momentum: float = field(0.9, "SGD's momentum", ge=0, lt=1)
    weight_decay: float = field(0.0, "weight decay (AdamW: on tensors of two or more dimensions)", ge=0)
    schedule: Literal["cosine", "exp_linear"] = field(
        "cosine", "learning rate after warm-up: cosine to min_learning_rate, or EfficientAT's exponential-flat-linear"
    )
    warmup_steps: int = field(5_000, "steps of linear warm-up", ge=0)
    unfinished_warmup: bool = field(
        False, "allow a warm-up that is longer than the training, whose rate then never reaches its peak", inert=True
    )
    min_learning_rate: float = field(0.0, "where the cosine ends", ge=0)
    clip_gradient: float | None = field(None, "largest gradient norm; null is no clipping")
    head_init: Literal["default", "normal", "prior"] = field(
        "default", "new heads: PyTorch's default; N(0, 0.01) and bias 0; default with the classes' log odds as bias"
    )
    random_crop: bool | Literal["fresh"] = field(
        True,
        "cut clips longer than 10 s at random in training; frozen: true takes crops every 5 s, which are encoded once, "
        "false every 10 s, and `fresh` draws and encodes each crop anew, as the released code",
    )
    precision: Literal["bf16", "fp16", "fp32"] = field("bf16", "arithmetic on a GPU; a CPU always uses fp32")
    per_model: dict[str, dict[str, Any] | None] = field(
        {}, "differences of single models, such as {BEATs: {epochs: 60}}; null drops one that the paper has"
    )

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rates(cls, value: Any) -> Any:
        """Check all three forms here, so that the message is one sentence and not one per form."""
        for rate in value.values() if isinstance(value, dict) else [value]:
            try:
                if rate != SEARCH and not 0 < float(rate) <= LARGEST_RATE:
                    raise ValueError
            except (TypeError, ValueError):
                raise ValueError(
                    f"expected a positive number up to {LARGEST_RATE:g}, one per model, or `search`, "
                    f"not {shown(rate)}; write learning_rate: 1.0e-4"
                ) from None
        return value

    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * -(-self.epoch_clips // self.batch_size)

    def of(self, model: str) -> Self:
        """The recipe of one model: its differences laid over, its learning rate a number or "search".

        Raises:
            UserError: no learning rate for the model, or a difference that is no valid recipe.
        """
        own = merge(self.model_dump(exclude={"per_model"}), self.per_model.get(model) or {})
        if isinstance(own["learning_rate"], dict):
            if model not in own["learning_rate"]:
                raise UserError(f"learning_rate has no value for {model}; write learning_rate: {{{model}: 1.0e-4}}")
            own["learning_rate"] = own["learning_rate"][model]
        try:
            return type(self).model_validate(own)
        except ValidationError as error:
            raise UserError(explain(error, type(self), prefix=("per_model", model))) from None

    def rate(self, model: str) -> float:
        """Peak learning rate of `model`. UserError if it is still to be searched."""
        rate = self.of(model).learning_rate
        if not isinstance(rate, float):
            raise UserError(f"learning_rate of {model} is still to be searched; write a number")
        return rate

    def searches(self) -> bool:
        """Whether the learning rate of any model is searched."""
        rates = self.learning_rate.values() if isinstance(self.learning_rate, dict) else [self.learning_rate]
        return SEARCH in rates or any((own or {}).get("learning_rate") == SEARCH for own in self.per_model.values())


class TrainRecipe(HeadRecipe):
    """Training of the whole model: Step 2, and fine-tuning on a downstream task."""

    random_crop: bool = field(True, "cut clips longer than 10 s at random in training; labels move with the cut")
    layer_decay: float = field(1.0, "factor on the learning rate per layer, from the top down", gt=0, le=1)
    sampler: Literal["uniform", "balanced"] = field("uniform", "how clips are drawn: all alike, or rare classes more")
    sampler_offset: float = field(30.0, "balanced sampler: weight of a class is 1000 / (offset + its count)", ge=0)
    replacement: bool = field(
        True, "balanced sampler: draw with replacement; without, weights act only in sets far larger than an epoch"
    )
    compile: bool = field(False, "torch.compile the model")
    accumulate: int = field(1, "least micro-batches per step; more where a GPU's memory is too small", ge=1)
    ema: float | None = field(
        None, "decay of an exponential moving average of the weights, which is validated and kept", gt=0, lt=1
    )
    keep_spectrograms: bool = field(
        False, "compute each clip's spectrogram once and keep it in memory; for small sets on a CPU, without wavmix"
    )
    augment: Augment = field(Augment, "augmentation")

    @model_validator(mode="after")
    def _possible(self) -> TrainRecipe:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts")
        if self.keep_spectrograms and (self.augment.wavmix or self.augment.gain_db):
            raise ValueError(
                "keep_spectrograms needs waveforms that do not change; write augment: {wavmix: 0, gain_db: 0}"
            )
        return self


_DISTILLATION: Any = field(0.0, "share of the loss on the ensemble's soft labels", **Probability)


class WeakRecipe(TrainRecipe):
    """Training on AudioSet Weak (Step 2): clip labels and soft labels of clips."""

    distillation_weight: float = _DISTILLATION


class TeacherRecipe(TrainRecipe):
    """Training on AudioSet Strong, with clips held out for validation where wanted."""

    validation_share: float = field(0.0, "share of the training clips held out for the validation loss", ge=0, lt=1)
    validate_epochs: int = field(5, "epochs between validations", ge=1)
    select: Literal["last", "best_loss"] = field("last", "weights to keep: the last, or of the lowest validation loss")
    patience: int | None = field(None, "stop after so many validations without a lower loss; null is never", ge=1)

    @model_validator(mode="after")
    def _validated(self) -> TeacherRecipe:
        for key in ("select: best_loss", "patience"):
            asked = self.select == "best_loss" if key != "patience" else self.patience is not None
            if asked and self.validation_share == 0:
                raise ValueError(f"{key} needs validation clips; write validation_share: 0.05")
            if asked and self.validate_epochs > self.epochs:
                raise ValueError(f"{key} needs a validation within {self.epochs} epochs; write validate_epochs: 1")
        return self


class Recipe(TeacherRecipe):
    """Training of a student: all keys of a teacher's, and distillation."""

    distillation_weight: float = _DISTILLATION


HeadRecipe.ELSEWHERE = frozenset(Recipe.model_fields)


def check_grid(grid: list[float], key: str) -> list[float]:
    """`grid`, the value of `key`. ValueError unless it holds different positive rates, at least one."""
    if not grid or len(set(grid)) != len(grid) or not all(0 < rate <= LARGEST_RATE for rate in grid):
        what = f"{key} needs different positive rates up to {LARGEST_RATE:g}, at least one"
        raise ValueError(f"{what}; write {key}: [1.0e-4, 3.0e-4]")
    return grid


class RateSearch(Block):
    """Choosing the learning rate of a recipe that says ``learning_rate: search``."""

    grid: list[float] = field([], "rates that are tried, one training each")
    seed: int = field(1, "seed of these trainings and of the choice of clips that judge them", **Seed)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_grid(self.grid, "grid")
        return self


class Search(RateSearch):
    """The search of teachers and students (Sec. 3.3)."""

    grid: list[float] = field([7e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3], "rates that are tried, one training each")
    judged_on: Literal["train", "eval"] = field(
        "train", "clips that judge: a part of the training clips, held out, or the evaluation clips"
    )
    share: float = field(0.05, "share of the training clips that judges, with judged_on: train", gt=0, lt=1)
    criterion: Literal["psds1", "loss"] = field("psds1", "what decides: the highest PSDS1 or the lowest loss on labels")


class WeakSearch(RateSearch):
    """The search of Step 2: training clips that are held out judge."""

    grid: list[float] = field([1e-5, 2e-5, 5e-5, 1e-4], "rates that are tried, one training each")
    share: float = field(0.01, "share of the training clips that judges", gt=0, lt=1)
    criterion: Literal["map", "loss"] = field("map", "what decides: the highest mAP or the lowest loss on clip labels")


def recipe_of(kind: type[HeadRecipe], **values: Any) -> Any:
    """A factory of the default recipe of a stage: `values` over the general defaults."""
    return lambda: kind(**values)


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
    distillation_weight=0.9,
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
    augment=dict(mixup=0.0, wavmix=0.0, frame_shift=0.0),
    # Their script for ATST-Frame (docs/decisions.md): a lower rate that decays from layer to layer.
    per_model={"ATST-F": dict(learning_rate=1e-3, layer_decay=0.75)},
)
