"""What would stop a run, found before any job starts: Snakemake and `framekd doctor` ask the same function.

Mistakes of one key are refused by :mod:`framekd.config` already. Here are those that need several keys, or the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from framekd.config import (
    LABEL_FILES,
    Config,
    DesedData,
    HearData,
    OwnTask,
    Sources,
    Step2,
    Task,
    TaskSearch,
    UserError,
    load,
    read_sources,
)
from framekd.config.recipe import HeadRecipe
from framekd.graph import Graph
from framekd.labels import known_strong, known_weak
from framekd.labels.extra import CLASH_REMEDY, clash, class_clashes, find_audio, read_extra
from framekd.layouts import made_here, missing

TABLE2 = ("all", "report", "table2", "downstream", "task_data")
"""Names in targets for which the downstream tasks are run."""
OTHER_RULES = ("table1", "teachers", "significance", "table_step2", "labels", "step1")
"""Rules that can be targets and need no downstream data."""


@dataclass(frozen=True)
class Problem:
    """A mistake in one sentence: the path of its key, the file and line of the key, what is wrong, and the remedy."""

    key: str
    what: str
    remedy: str
    place: str = ""
    also: tuple[str, ...] = ()
    """Other keys that the mistake depends on."""

    def __str__(self) -> str:
        return f"{self.place + ': ' if self.place else ''}{self.key}: {self.what}; {self.remedy}"


def checked(
    files: Iterable[str | Path],
    *,
    given: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    targets: Iterable[str] | None = None,
) -> Config:
    """The configuration of `files`.

    Args:
        files: configuration files, later ones laid over earlier ones.
        given: values of the command line, laid over the files.
        values: what another reader (Snakemake) made of the same files and values; it is what counts.
        targets: what is asked for: files or rules, among other words of a command line. None is everything.
    Raises:
        UserError: one sentence for each mistake that can be known before a run.
    """
    read, sources = read_sources(files, given)
    config = load(dict(read if values is None else values), sources=sources)
    if found := problems(config, sources, targets=targets):
        raise UserError("\n".join(map(str, found)))
    return config


def problems(config: Config, sources: Sources, *, targets: Iterable[str] | None = None) -> list[Problem]:
    """Mistakes of a valid configuration that would stop a run of `targets`, or make it pointless."""
    found = [
        *_trainings(config),
        *_step1(config),
        *_step2(config, sources),
        *_folders(config),
        *_extra(config),
        *_soft_labels(config),
    ]
    if _asks_for_table2(config, targets):
        found += _downstream(config)
    return [replace(p, place=sources.place(p.key, *p.also)) for p in dict.fromkeys(found)]


def _asks_for_table2(config: Config, words: Iterable[str] | None) -> bool:
    """Whether a command line asks for Table II, or for everything, in that it names no file or rule."""
    folders = tuple(f"{folder.rstrip('/')}/" for folder in (config.results_dir, config.data_dir))
    targets = [word for word in words or () if word in (*TABLE2, *OTHER_RULES) or word.startswith(folders)]
    tasks = f"{folders[1]}tasks/"
    asked = (t for t in targets for name in TABLE2 if name in t.removeprefix(folders[0]) or t.startswith(tasks))
    return not targets or any(asked)


def _recipes(config: Config) -> Iterator[tuple[str, HeadRecipe, list[str]]]:
    """Every recipe that a training of this run uses, with the path of its key and its models."""
    if config.step2_trained:
        yield "step2.recipe", config.step2.recipe, config.step2_trained
    graph = Graph(config)
    for name in graph.teacher_settings:
        teacher = config.setting(name).teacher
        assert teacher is not None
        yield _key(config, name, "teacher"), teacher.recipe, config.models
    for name in graph.student_settings:
        student = config.setting(name).student
        assert student is not None
        yield _key(config, name, "student"), student.recipe, config.models
    for task, block in config.downstream.named.items():
        for mode in config.downstream.modes:
            yield f"{config.downstream.key(task)}.{mode}", getattr(block, mode), config.models


def _key(config: Config, setting: str, block: str) -> str:
    """Path of the recipe of a setting: its own where it differs from that of the stage."""
    own = config.settings[setting].get(block)
    return f"settings.{setting}.{block}.recipe" if own and own.get("recipe") else f"{block}.recipe"


def _trainings(config: Config) -> Iterator[Problem]:
    """Learning rates of models that are absent or unknown; warm-ups longer than the training."""
    for key, recipe, models in _recipes(config):
        rates = recipe.learning_rate
        for name in [name for name in rates if name not in config.models] if isinstance(rates, dict) else []:
            what = f"there is no model called {name!r} in models ({', '.join(config.models)})"
            yield Problem(f"{key}.learning_rate", what, f"remove it, or write models: [{name}, …]")
        for model in models:
            try:
                own = recipe.of(model)
            except UserError as error:
                what, _, remedy = str(error).partition("; ")
                yield Problem(f"{key}.learning_rate", what.removeprefix("learning_rate "), remedy or "correct it")
                continue
            steps = own.steps()
            # The miniature's trainings are often cut short to try something, and cost seconds.
            if own.warmup_steps > steps and not own.unfinished_warmup and config.miniature is None:
                what = f"{model}: {own.warmup_steps} steps of warm-up are more than the {steps} steps of the training"
                remedy = f"write warmup_steps: {max(1, steps // 10)}, or unfinished_warmup: true if it is meant"
                length = tuple(f"{key}.{name}" for name in ("epochs", "epoch_clips", "batch_size"))
                yield Problem(f"{key}.warmup_steps", what, remedy, also=length)
                break


def _step1(config: Config) -> Iterator[Problem]:
    """Models without a checkpoint to start from."""
    for model in config.models if config.step1.source == "external" else []:
        if model not in config.step1.external:
            remedy = f"write step1: {{external: {{{model}: {{url: …}}}}}}, or step1: {{source: seed}}"
            yield Problem("step1.external", f"it has no address for {model}", remedy, also=("models",))


def _step2(config: Config, sources: Sources) -> Iterator[Problem]:
    """Step 2 cannot train without AudioSet Weak."""
    default = Step2().train
    stated = [name for name in sources.stated("step2", "train") if Path(name).name != "config.yaml"]
    trained = [name for name in config.step2.train if name in config.models]
    if not config.audioset.weak and trained and (stated or config.step2.train != default):
        what = f"Step 2 trains {', '.join(trained)}, but audioset.weak is false, so that it has no clips"
        yield Problem("step2.train", what, "write step2: {train: []}, or audioset: {weak: true}")


def _folders(config: Config) -> Iterator[Problem]:
    """Folders and files that are read but absent, and folders that cannot be written to."""
    audioset = config.audioset
    for key, folder in (("results_dir", config.results_dir), ("data_dir", config.data_dir)):
        if (why := _unwritable(folder)) is not None:
            yield Problem(key, f"{folder!r} {why}", "name a folder that you may write to")
    graph = Graph(config)
    if config.miniature is not None:
        return
    sources = [] if all(Path(shard).is_file() for shard in graph.stores(*graph.groups)) else audioset.folders
    for folder in sources:
        if not Path(folder).is_dir():
            yield Problem("audioset.folders", f"{folder} does not exist or is no folder", "correct the path")
    for file in audioset.hdf5 if sources is audioset.folders else []:
        if not Path(file).exists():
            yield Problem("audioset.hdf5", f"{file} does not exist", "correct the path, or remove it")
    if all(Path(file).is_file() for file in graph.labels.values()):
        pass  # they are not read again
    elif audioset.labels_dir and not Path(audioset.labels_dir).is_dir():
        remedy = "correct the path, or write labels_dir: null"
        yield Problem("audioset.labels_dir", f"{audioset.labels_dir} does not exist or is no folder", remedy)
    elif audioset.labels_dir:
        labels = Path(audioset.labels_dir)
        lost = []
        for name, file in LABEL_FILES.items():
            other = audioset.labels_url.get(name, "").rsplit("/", 1)[-1]
            if not any((labels / n).is_file() and (labels / n).stat().st_size for n in (file, other) if n):
                lost.append(file)
        if lost:
            what = f"{labels} has no {lost[0]}" + (f" and {len(lost) - 1} other label files" if lost[1:] else "")
            yield Problem("audioset.labels_dir", what, "put the published files there, or write labels_dir: null")
    if config.published.clips and not Path(config.published.clips).is_file():
        yield Problem("published.clips", f"{config.published.clips} does not exist", "correct the path, or write null")
    cookies = audioset.download.cookies
    if audioset.download.enabled and cookies and not Path(cookies).is_file():
        remedy = "correct the path, or write cookies: null"
        yield Problem("audioset.download.cookies", "names a file that does not exist", remedy)


def _extra(config: Config) -> Iterator[Problem]:
    """Own recordings: a table that cannot be read, recordings that are missing, names like those of AudioSet."""
    extra = config.audioset.extra
    if extra is None:
        return
    try:
        labels = read_extra(extra.labels)
    except UserError as error:
        yield Problem("audioset.extra.labels", str(error), "correct the table (docs/own-data.md)")
        return
    try:
        find_audio(labels, extra.audio)
    except UserError as error:
        yield Problem("audioset.extra.audio", str(error), "correct the folder, or the names in the table")
    for pair in class_clashes(labels.counts(), {*known_strong()[0].names, *known_weak().names}):
        yield Problem("audioset.extra.labels", f"{labels.path}: {clash(*pair)}", CLASH_REMEDY)


def _unwritable(folder: str) -> str | None:
    """Why no file can be made in `folder`; None if one can."""
    path = Path(folder or ".")
    while not path.exists() and not path.is_symlink() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        return f"cannot be a folder, because {path} is a file" if path.exists() else f"leads over the dead link {path}"
    return None if os.access(path, os.W_OK | os.X_OK) else f"cannot be written to ({path} is not yours to change)"


def _soft_labels(config: Config) -> Iterator[Problem]:
    """Files of soft labels on this machine that are absent."""
    given = []
    if config.step2.soft_labels and config.step2_distils:
        soft = config.step2.soft_labels
        given += [("step2.soft_labels.logits", soft.logits), ("step2.soft_labels.index", soft.index)]
    for name in config.settings:
        student = config.setting(name).student
        own = (config.settings[name].get("student") or {}).get("soft_labels")
        if student and student.soft_labels:
            given.append(
                (f"settings.{name}.student.soft_labels" if own else "student.soft_labels", student.soft_labels)
            )
    for key, file in given:
        if file is not None and file.path and not Path(file.path).is_file():
            yield Problem(
                f"{key}.path", f"{file.path} does not exist", "correct the path, or write path: null with a url"
            )


def _no_judges(task: str, block: Task) -> str | None:
    """Why a task has no clips that judge rates or weights; None if it has some. HEAR's splits and folds have them."""
    own = isinstance(block, OwnTask) and not (Path(block.data) / "valid.tsv").is_file()
    if block.validates and (own or task == "DESED") and block.search.share == 0:
        return "search.share is 0" + (f", and {block.data} has no valid.tsv" if own else "")
    return None


def _downstream(config: Config) -> Iterator[Problem]:
    """Data of the downstream tasks that are absent and that no rule makes; archives that are absent."""
    graph = Graph(config)
    made = f"{config.data_dir.rstrip('/')}/miniature/" if config.miniature is not None else None
    for task, block in config.downstream.named.items():
        folder, named = block.data, f"{config.downstream.key(task)}.data"
        public = config.downstream.public(task)
        scores = [graph.transfer(task, model, c) for model in config.models for c in config.downstream.checkpoints]
        if all(Path(path).is_file() for path in scores):
            continue
        if why := _no_judges(task, block):
            key = config.downstream.key(task)
            also = tuple(
                f"{key}.{name}" for name in ("data", "select", "frozen.learning_rate", "finetune.learning_rate")
            )
            remedy = f"write search: {{share: {TaskSearch().share}}}, or numbers as learning rates and select: last"
            yield Problem(f"{key}.search", f"validation clips judge rates or weights, but {why}", remedy, also=also)
        if made and folder.startswith(made):
            continue
        state = next((path for path in graph.task_data(task) if path.endswith("state.json")), "")
        if graph.fetched(task):
            if Path(state).is_file() and not made_here(folder):
                yield Problem(named, f"{folder} is gone, but {state} says that it was made", f"remove {state}")
            elif not Path(state).is_file():
                fetch = config.downstream.fetch.of(task)
                yield from _archives(task, fetch)
                if public and isinstance(fetch, DesedData) and "public" not in fetch.lists:
                    what = "the public evaluation set has no official list by which its clips are fetched"
                    remedy = "write lists: {public: {path: FILE}}, or public_evaluation: false"
                    yield Problem("downstream.fetch.DESED.lists", what, remedy)
            continue
        without = "or ask for results/table1.csv, which does without"
        if not Path(folder).is_dir() or not any(Path(folder).iterdir()):
            what = f"{folder} does not exist or is empty, and Table II needs it"
            yield Problem(named, what, f"put the data there (docs/downstream.md), {without}")
        elif lost := missing(task, folder, public=public):
            what = f"{folder} has no {lost[0]}" + (f" and {len(lost) - 1} other lists" if lost[1:] else "")
            again = f"complete or remove the folder (docs/downstream.md), {without}"
            yield Problem(named, what, again)


def _archives(task: str, data: HearData | DesedData | None) -> Iterator[Problem]:
    """Files on this machine that a task is made from, and that are absent."""
    if isinstance(data, HearData):
        names = {"prepared": data.prepared} if data.take == "prepared" else data.original
        files = {(name if data.take == "prepared" else f"original.{name}"): file for name, file in names.items()}
    elif isinstance(data, DesedData):
        files = {"synthetic": data.synthetic, **{f"lists.{name}": file for name, file in data.lists.items()}}
        for folder in data.folders:
            if not Path(folder).is_dir():
                what = f"{folder} does not exist or is no folder"
                yield Problem(f"downstream.fetch.{task}.folders", what, "correct the path")
    else:
        return
    for name, file in files.items():
        url = urlsplit(file.url or "")
        path = file.path or (url2pathname(url.path) if url.scheme == "file" else None)
        if path is not None and not Path(path).is_file():
            key = f"downstream.fetch.{task}.{name}.{'path' if file.path else 'url'}"
            yield Problem(key, f"{path} does not exist", "correct it, or give another address")
