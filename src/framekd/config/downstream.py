"""The downstream tasks of Table II."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from framekd.config.base import Block, Seed, field
from framekd.config.recipe import SEARCH, HeadRecipe, TrainRecipe, check_grid
from framekd.config.sets import Fetch, published_counts

PAPER_TASKS = ("DESED", "DC16-T2", "MAESTRO")


class TaskSearch(Block):
    """Choosing the learning rates of a task whose recipes say ``learning_rate: search``."""

    frozen: list[float] = field(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], "rates that are tried with a frozen transformer, all at once"
    )
    finetune: list[float] = field([3e-5, 1e-4, 3e-4, 1e-3], "rates that are tried in fine-tuning, one training each")
    share: float = field(
        0.1, "share of the training clips that judges and is not trained on, where there are no others", ge=0, lt=1
    )
    seed: int = field(1, "seed of the choice of these clips", **Seed)
    halving: float | None = field(
        None,
        "fine-tuning: the worse half of the rates is dropped after this share of the epochs, and again after twice, "
        "four times, … as many; null trains all to the end",
        gt=0,
        lt=1,
        json_schema_extra={"late": True},
    )

    @field_validator("frozen", "finetune")
    @classmethod
    def _grids(cls, value: list[float], info: ValidationInfo) -> list[float]:
        return check_grid(value, str(info.field_name))

    @model_validator(mode="after")
    def _something_to_drop(self) -> Self:
        if self.halving is not None and len(self.finetune) == 1:
            raise ValueError("halving drops nothing of a grid of one rate; write halving: null, or a longer finetune")
        return self

    def rounds(self, epochs: int) -> list[int]:
        """Epochs of a training of `epochs` after which the worse half of the rates is dropped."""
        shares = [] if self.halving is None else [self.halving * 2**i for i in range(64)]
        return sorted({max(1, round(share * epochs)) for share in shares if share < 1} - {epochs})


class Task(Block):
    """A downstream task of Table II."""

    data: str = field("", "folder of the task's data")
    seeds: list[Annotated[int, Field(**Seed)]] = field([1, 2, 3, 4], "seeds (MAESTRO: ignored, one run a fold)")
    head: Literal["linear", "attention"] = field("linear", "head on top of the frozen or fine-tuned transformer")
    median_seconds: float = field(0.25, "median filter of the post-processing", ge=0)
    min_seconds: float = field(0.125, "shortest event that is kept", ge=0)
    threshold: float = field(0.5, "probability above which a class is active; PSDS1 needs none", gt=0, lt=1)
    frozen: HeadRecipe = field(HeadRecipe, "training of the head alone")
    finetune: TrainRecipe = field(TrainRecipe, "training of everything")
    select: Literal["last", "best"] = field(
        "last", "weights to keep: those of the last step, or of the epoch with the lowest loss on validation clips"
    )
    search: TaskSearch = field(
        TaskSearch, "how its learning rates are chosen, where a recipe says `learning_rate: search`"
    )

    @property
    def validates(self) -> bool:
        """Whether validation clips decide anything: they are not trained on then."""
        return self.select == "best" or self.frozen.searches() or self.finetune.searches()

    def of(self, model: str) -> Self:
        """The options of one model: its recipes, and of `search` what acts.

        Raises:
            UserError: no learning rate for the model, or a difference that is no valid recipe.
        """
        recipes: dict[str, Any] = {"frozen": self.frozen.of(model), "finetune": self.finetune.of(model)}
        own, default = self.model_copy(update=recipes), TaskSearch()
        idle = {mode: getattr(default, mode) for mode, recipe in recipes.items() if not recipe.searches()}
        if "finetune" in idle:
            idle["halving"] = None
        search = self.search.model_copy(update=idle) if own.validates else default
        return own.model_copy(update={"search": search})

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) != len(value):
            raise ValueError("seeds must be different numbers, at least one; write seeds: [1, 2, 3, 4]")
        return value

    @model_validator(mode="after")
    def _something_to_halve(self) -> Self:
        if self.search.halving is not None and not self.finetune.searches():
            raise ValueError(
                "search.halving acts in a search of fine-tuning; write finetune: {learning_rate: search}, or "
                "search: {halving: null}"
            )
        if self.search.halving is not None and not self.search.rounds(self.finetune.epochs):
            share, epochs = self.search.halving, self.finetune.epochs
            raise ValueError(
                f"search.halving: a share of {share:g} of {epochs} epochs is all or none; write 0.25 or null"
            )
        return self


class DesedTask(Task):
    """DESED, which has a second set of real test clips."""

    public_evaluation: bool = field(
        False,
        "score the public evaluation set too, in columns of their own; the paper's numbers are of the validation clips",
        json_schema_extra={"late": True},
    )


class OwnTask(Task):
    """A further task: a folder with train.tsv, test.tsv and recordings, scored as one of the paper's tasks."""

    metric: Literal["psds1", "onset_f"] = field(
        "onset_f", "score: PSDS1 with and without variance penalty, or the onset F-measure at 50 ms"
    )
    frozen: HeadRecipe = Field(
        default_factory=lambda: HeadRecipe(**_OWN, learning_rate=1e-3), description="training of the head alone"
    )
    finetune: TrainRecipe = Field(
        default_factory=lambda: TrainRecipe(**_OWN, learning_rate=1e-4, layer_decay=0.5),
        description="training of everything",
    )


def _task(
    data: str, frozen: dict, finetune: dict, *, grids: dict[str, Any], kind: type[Task] = Task, **values: Any
) -> Any:
    recipes: dict[str, Any] = {
        "frozen": HeadRecipe(**frozen, learning_rate=SEARCH),
        "finetune": TrainRecipe(**finetune, learning_rate=SEARCH),
    }
    return lambda: kind(data=data, search=TaskSearch(**grids), **recipes, **values)


_OWN: dict[str, Any] = dict(epochs=50, epoch_clips=2_000, batch_size=32, warmup_steps=100, precision="bf16")
_DESED = dict(epochs=100, epoch_clips=10_000, batch_size=256, warmup_steps=195, precision="bf16")
_DC16 = dict(epochs=300, epoch_clips=516, batch_size=256, warmup_steps=100)
_MAESTRO = dict(epochs=50, epoch_clips=5_400, batch_size=256, warmup_steps=100)


class Downstream(Block):
    """Table II: three tasks, frozen and fine-tuned, from three checkpoints (Sec. 4)."""

    checkpoints: list[Literal["untrained", "step1", "step2", "full"]] = field(
        ["step1", "step2", "full"],
        "checkpoints to start from; untrained adds two baselines: frozen weights from step1.seed, and a constant guess",
    )
    modes: list[Literal["frozen", "finetune"]] = field(["frozen", "finetune"], "ways to train")
    full_setting: str = field("proposed", "setting of Table I whose first seed is the `full` checkpoint")
    DESED: DesedTask | None = Field(
        default_factory=_task(
            "data/desed",
            _DESED,
            _DESED | dict(layer_decay=0.5),
            grids=dict(frozen=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2], finetune=[3e-5, 1e-4, 3e-4, 1e-3]),
            select="best",
            kind=DesedTask,
            head="attention",
            median_seconds=0.28,
            min_seconds=0.0,
        ),
        description="DESED: PSDS1 with variance penalty, 10 classes",
    )
    DC16_T2: Task | None = Field(
        default_factory=_task(
            "data/dcase2016_task2",
            _DC16 | dict(epochs=500),
            _DC16
            | dict(
                optimiser="adamw",
                weight_decay=1e-3,
                augment=dict(mixup=0.5, wavmix=0.5, wavmix_alpha=0.2),
            ),
            grids=dict(frozen=[3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.5], finetune=[3e-5, 1.06e-4, 3e-4, 1e-3]),
        ),
        alias="DC16-T2",
        description="DCASE 2016 Task 2: onset F-measure at 50 ms, 11 classes",
    )
    MAESTRO: Task | None = Field(
        default_factory=_task(
            "data/maestro",
            _MAESTRO,
            _MAESTRO,
            grids=dict(frozen=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1], finetune=[3e-5, 1e-4, 3e-4, 1e-3]),
            select="best",
            seeds=[1],
            median_seconds=0.15,
            min_seconds=0.05,
        ),
        description="MAESTRO 5h: onset F-measure at 50 ms, 88 pitches, mean over 5 folds",
    )
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")], OwnTask] = field(
        {}, "further tasks by name, each a folder and a score (docs/downstream.md); DESED: null drops a task"
    )
    fetch: Fetch = field(Fetch, "what the folders of the paper's tasks are made from (docs/downstream.md)")
    counts: dict[str, dict[str, int | None] | None] = Field(
        default_factory=published_counts,
        description="published numbers of clips, classes and seconds a clip, by task: data that differ are refused; "
        "null compares nothing",
    )
    min_share: float = field(0.9, "share of DESED's listed real clips that must be there", ge=0, le=1)
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @field_validator("counts")
    @classmethod
    def _known_counts(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = {task: list(numbers or ()) for task, numbers in published_counts().items()}
        for task, numbers in value.items():
            if task not in known:
                raise ValueError(f"{task!r} is no task of the paper; the tasks are {', '.join(known)}")
            if unknown := [name for name in numbers or () if name not in known[task]]:
                raise ValueError(f"{task} has no number {unknown[0]!r}; its numbers are {', '.join(known[task])}")
        return value

    @field_validator("checkpoints", "modes")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"expected at least one value, each once, not {value!r}")
        return value

    @property
    def named(self) -> dict[str, Task]:
        """The tasks by name: the paper's unless they are dropped, then further ones."""
        paper = {"DESED": self.DESED, "DC16-T2": self.DC16_T2, "MAESTRO": self.MAESTRO}
        return {**{name: task for name, task in paper.items() if task is not None}, **self.tasks}

    def public(self, task: str) -> bool:
        """Whether the public evaluation set of a task is scored too."""
        return isinstance(block := self.named.get(task), DesedTask) and block.public_evaluation

    def key(self, task: str) -> str:
        """Path of a task's block in the configuration."""
        return f"downstream.tasks.{task}" if task in self.tasks else f"downstream.{task}"

    @model_validator(mode="after")
    def _some_tasks(self) -> Self:
        if not self.named:
            raise ValueError("every task is dropped; keep one, or write tasks: {MINE: {data: FOLDER}}")
        for name in self.tasks:
            if name in PAPER_TASKS:
                raise ValueError(f"tasks: {name} is a task of the paper; give yours another name")
        return self

    @model_validator(mode="after")
    def _untrained_is_frozen(self) -> Self:
        if "untrained" in self.checkpoints and "frozen" not in self.modes:
            raise ValueError("checkpoints: untrained is scored frozen only; add frozen to modes, or leave it out")
        return self
