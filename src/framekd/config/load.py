"""The whole configuration, and reading it: the paper's numbers with the user's differences laid over them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from framekd.config.base import Block, Seed, UserError, difference, explain, field, merge, shown
from framekd.config.data import AudioSet, Miniature
from framekd.config.downstream import PAPER_TASKS, Downstream, OwnTask
from framekd.config.recipe import HeadRecipe, Recipe
from framekd.config.sizes import SIZES, resolve_sizes, unknown_model
from framekd.config.sources import Sources, read_sources
from framekd.config.stages import (
    MODELS,
    SETTINGS,
    Evaluation,
    FrontEnds,
    Published,
    Resources,
    Setting,
    Sites,
    SoftFile,
    Step1,
    Step2,
    Student,
    Teacher,
    Tracking,
    Watch,
    default_resources,
)


class Config(Block):
    """The whole configuration. Its defaults are the paper (Schmid et al., ICASSP 2025)."""

    results_dir: str = field("results", "where results are written")
    data_dir: str = field("data", "where audio and labels are kept")
    models: list[str] = field(list(MODELS), "architectures")
    seeds: list[Annotated[int, Field(**Seed)]] = field([1, 2, 3], "seeds of each experiment (Sec. 3.4)")
    models_per_job: int = field(1, "models trained one after the other in one job", inert=True, ge=1)
    seeds_per_job: int = field(1, "seeds trained one after the other in one job", inert=True, ge=1)
    sizes: dict[str, dict[str, Any]] = field(
        {}, "per model, sizes that differ from the paper's (`all` is for every model)"
    )
    front_ends: FrontEnds = field(FrontEnds, "switches of the front ends (docs/configuration.md)")
    audioset: AudioSet = field(AudioSet, "AudioSet's labels and audio")
    recipe: Recipe = field(
        Recipe, "defaults of every training (Sec. 3.3); a stage below has the keys that act in it, and what differs"
    )
    step1: Step1 = field(Step1, "Step 1: external checkpoints")
    step2: Step2 = field(Step2, "Step 2: AudioSet Weak")
    teacher: Teacher = field(Teacher, "Step 3: teachers")
    student: Student = field(Student, "Step 3: students")
    settings: dict[str, dict[str, Any]] = field(SETTINGS, "rows of Table I, each as its difference from `proposed`")
    evaluation: Evaluation = field(Evaluation, "scoring")
    published: Published = field(Published, "scores of the authors' own checkpoints (docs/published.md)")
    downstream: Downstream = field(Downstream, "Table II")
    miniature: Miniature | None = field(None, "the embedded miniature instead of AudioSet; null is the real data")
    watch: Watch = field(Watch, "scoring Step 2 and Step 3 while they train (PSDS1; Step 2: mAP); searches are not")
    tracking: Tracking = field(Tracking, "where trainings are shown while they run", inert=True)
    audio_on: Literal["host", "device", "auto"] = field(
        "auto",
        "where Step 2 and Step 3 keep audio and soft labels while they train: files, the GPU's memory, or there if a "
        "quarter of what is free holds them",
        inert=True,
    )
    site: Sites = field(
        Sites,
        "words of your cluster, such as {slurm_partition: gpu}; a stage's own, in `resources`, replace them",
        inert=True,
    )
    resources: dict[str, Resources] = Field(
        default_factory=default_resources,
        description="what the jobs of a stage ask the cluster for",
        json_schema_extra={"inert": True},
    )

    @model_validator(mode="before")
    @classmethod
    def _dropped(cls, values: Any) -> Any:
        """Remove settings that are written as null."""
        settings = values.get("settings") if isinstance(values, dict) else None
        if not isinstance(settings, dict):
            return values
        return {**values, "settings": {name: block for name, block in settings.items() if block is not None}}

    @field_validator("models")
    @classmethod
    def _known_models(cls, value: list[str]) -> list[str]:
        if not value or len(set(value)) != len(value):
            raise ValueError(f"models must be different names, at least one; write models: [{', '.join(MODELS)}]")
        for name in value:
            if name not in SIZES:
                raise ValueError(f"there is no model called {name!r}; {unknown_model(name)}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Config:
        self._refuse_names()
        for name in dict.fromkeys([*self.models, *(name for name in self.sizes if name != "all")]):
            try:
                resolve_sizes(name, self.model_sizes(name))
            except UserError as error:
                where = f"sizes.{name}" if name in self.sizes else "sizes.all"
                raise ValueError(f"{where}: {error}") from None
        for name in self.step2.train:
            if name not in MODELS and name not in self.models:
                raise ValueError(f"step2.train names {name!r}; {unknown_model(name, dict.fromkeys(self.models))}")
        for name in self.step2.soft_labels.members if self.step2.soft_labels else []:
            if name not in self.models:
                raise ValueError(f"step2.soft_labels.members names {name!r}, which is none of {', '.join(self.models)}")
        for name in self.models:
            if name not in self.step2_trained and name not in self.step2.external:
                why = "" if self.audioset.weak else ", and audioset.weak is false, so that Step 2 trains no model"
                where = "neither in step2.train nor" if self.audioset.weak else "not"
                raise ValueError(f"step2: {name} is {where} in step2.external{why}")
        for name in self.settings:
            self.setting(name)
        self.soft_files()
        for key, recipe in self._recipes():
            if key == "recipe" and recipe.searches():
                raise ValueError("recipe.learning_rate: only a stage or a task searches; write a number here")
            for name in recipe.per_model:
                if name not in MODELS and name not in self.models:
                    raise ValueError(f"{key}.per_model names {name!r}, which is none of {', '.join(self.models)}")
                try:
                    recipe.model_copy(update={"learning_rate": 1.0}).of(name)
                except UserError as error:
                    raise ValueError(f"{key}.{error}") from None
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError("seeds must be different numbers, at least one; write seeds: [1, 2, 3]")
        if self.downstream.full_setting not in self.settings:
            raise ValueError(
                f"downstream.full_setting {self.downstream.full_setting!r} is none of {list(self.settings)}"
            )
        return self

    def _refuse_names(self) -> None:
        """Refuse names of stages, models and settings that cannot be."""
        url = self.audioset.download.url
        try:
            names = {name for _, name, _, _ in Formatter().parse(url) if name is not None}
        except ValueError:
            names = set()
        if "ytid" not in names or names - {"ytid", "port"}:
            raise ValueError(
                f"audioset.download.url: {shown(url)} must hold {{ytid}} for a clip's id, and no other braces; "
                "write url: 'https://www.youtube.com/watch?v={ytid}'"
            )
        stages = list(default_resources())
        for name in self.resources:
            if name not in stages:
                near = difflib.get_close_matches(name, stages, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"the stages are {', '.join(stages)}."
                raise ValueError(f"resources.{name}: {name!r} is no stage; {hint}")
        for name in self.sizes:
            if name != "all" and name not in SIZES:
                raise ValueError(f"sizes.{name}: there is no model called {name!r}; {unknown_model(name)}")
        if not self.settings:
            raise ValueError("settings: expected at least one; write settings: {proposed: {}}")
        for name in self.settings:
            if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,99}", name, re.ASCII):
                plain = re.sub(r"[^A-Za-z0-9]+", "_", name)[:99].strip("_") or "mine"
                raise ValueError(
                    f"settings.{name}: {shown(name)} cannot be a folder of the results; "
                    f"name the setting with letters, digits, _ and -, such as {plain!r}"
                )

    def _recipes(self) -> Iterator[tuple[str, HeadRecipe]]:
        """All recipes with the names of their keys."""
        yield "recipe", self.recipe
        yield "step2.recipe", self.step2.recipe
        yield "teacher.recipe", self.teacher.recipe
        yield "student.recipe", self.student.recipe
        for name in self.settings:
            block = self.setting(name)
            for key, part in (("teacher", block.teacher), ("student", block.student)):
                if part is not None:
                    yield f"settings.{name}.{key}.recipe", part.recipe
        for name, task in self.downstream.named.items():
            yield f"{self.downstream.key(name)}.frozen", task.frozen
            yield f"{self.downstream.key(name)}.finetune", task.finetune

    @property
    def step2_trained(self) -> list[str]:
        """Models that Step 2 trains here; none without AudioSet Weak."""
        return [name for name in self.models if self.audioset.weak and name in self.step2.train]

    @property
    def step2_distils(self) -> bool:
        """Whether Step 2 trains a model here that learns from soft labels."""
        return self.step2.distils(self.step2_trained)

    def setting(self, name: str) -> Setting:
        """Setting `name` of Table I: the blocks `teacher` and `student` with the setting's differences laid over."""
        if name not in self.settings:
            raise UserError(f"settings has no {name!r}; it has {', '.join(self.settings)}")
        base = {"start": "step2", "teacher": self.teacher.model_dump(), "student": self.student.model_dump()}
        try:
            return Setting.model_validate(merge(base, self.settings[name]))
        except ValidationError as error:
            raise UserError(explain(error, Setting, prefix=("settings", name))) from None

    def soft_files(self) -> dict[str, SoftFile]:
        """Files of soft labels to fetch, by file name. Two different files of one name are refused."""
        given: list[tuple[str, SoftFile]] = []
        if self.step2.soft_labels and self.step2_distils:
            given += [("step2.soft_labels", file) for file in self.step2.soft_labels.files]
        for setting in self.settings:
            student = self.setting(setting).student
            if student and student.soft_labels:
                given.append((f"settings.{setting}.student.soft_labels", student.soft_labels))
        found: dict[str, SoftFile] = {}
        for key, file in given:
            if file.url is None:
                continue
            if found.setdefault(file.name, file) != file:
                other = found[file.name]
                what = f"{other.url} and {file.url} are" if other.url != file.url else f"{file.url} has two sums and is"
                raise ValueError(
                    f"{key}: {what} fetched to one file, {file.name}; "
                    "write one url with one sha256, or give one of them by path"
                )
        return found

    def teachers_of(self, name: str) -> str | None:
        """The first setting that has the same teachers as `name` (equal teachers are trained once); None without."""
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


MODES = ("frozen", "finetune")
RECIPES: tuple[tuple[str, ...], ...] = (
    ("step2", "recipe"),
    ("teacher", "recipe"),
    ("student", "recipe"),
    *((("downstream", task, mode)) for task in PAPER_TASKS for mode in MODES),
)
"""Where the configuration has a recipe that states its differences from the block `recipe`."""


def at(values: Any, path: tuple[str, ...]) -> Any:
    """The value under `path` in nested dicts; None where a key is absent or no dict."""
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def stage_differences(
    paper: dict[str, Any], places: Iterable[tuple[str, ...]] = RECIPES
) -> dict[tuple[str, ...], dict[str, Any]]:
    """What the paper's recipe of each place (`RECIPES`) changes in the general defaults."""
    general = Recipe().model_dump(mode="json")
    return {path: difference(at(paper, path), general) for path in places}


def resolve(values: dict[str, Any]) -> dict[str, Any]:
    """`values` (differences, as YAML has them) laid over the paper, with every recipe complete.

    A recipe is, in this order: the block `recipe`, the paper's differences of the stage, and those of `values`.
    """
    paper = Config().model_dump(mode="json", by_alias=True)
    own = at(values, ("downstream", "tasks"))
    own = own if isinstance(own, dict) else {}
    paper["downstream"]["tasks"] = {name: OwnTask().model_dump(mode="json") for name in own}
    merged = merge(paper, values)
    given = values.get("recipe")
    common = merge(paper["recipe"], given) if isinstance(given, dict) else paper["recipe"]
    places = [*RECIPES, *(("downstream", "tasks", name, mode) for name in own for mode in MODES)]
    for path, stage in stage_differences(paper, places).items():
        parent, mine = at(merged, path[:-1]), at(values, path)
        if not isinstance(parent, dict) or not (mine is None or isinstance(mine, dict)):
            continue  # validation names the mistake
        acting = {key: common[key] for key in at(paper, path)}
        parent[path[-1]] = merge(merge(acting, stage), mine or {})
    return merged


def load(values: dict[str, Any], *, source: str = "configuration", sources: Sources | None = None) -> Config:
    """The configuration of `values`, which state only differences from the paper.

    A setting or a published checkpoint of the paper is dropped by writing null for it.

    Args:
        source: what a message names as the origin of the values.
        sources: where they are written; a message then names file and line.
    Raises:
        UserError: one sentence per mistake.
    """
    try:
        return Config.model_validate(resolve(values))
    except ValidationError as error:
        if sources:
            raise UserError(explain(error, Config, locate=sources.locate)) from None
        raise UserError(f"{source}: " + explain(error, Config)) from None


def load_files(*paths: str | Path) -> Config:
    """The configuration of `paths`; later files are laid over earlier ones.

    Raises:
        UserError: a file that is absent, no YAML or no configuration.
    """
    values, sources = read_sources(paths)
    return load(values, sources=sources)
