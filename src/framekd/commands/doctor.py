"""`framekd doctor`: what would stop a long run."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framekd.errors import UserError

if TYPE_CHECKING:
    from framekd.config import Config, Sources

STORE_GB = {"strong": 32, "eval": 6, "weak": 600}
"""Gigabytes of a group's clips as 16-bit samples; FLAC takes three quarters (docs/data.md)."""
TEACHER_GB, STUDENT_GB, ENSEMBLE_GB = 0.7, 0.4, 23.2
"""Gigabytes of a teacher, a student, and the logits of an ensemble over AudioSet Strong (docs/reproduce.md)."""


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("doctor", help="check the environment and the configured data before a long run")
    out.set_defaults(run=doctor)
    out.add_argument("--configfile", nargs="+", default=[], help="differences from config/config.yaml")
    out.add_argument(
        "--memory",
        nargs="?",
        type=float,
        const=0.0,
        metavar="GIB",
        help="count the GPU memory of every training, in about a minute; for a GPU of GIB, or the one that is here",
    )
    out.add_argument("--slurm", action="store_true", help="ask Slurm about every stage, and run a job with a GPU")
    out.add_argument("targets", nargs="*", metavar="TARGET", help="what you will ask Snakemake for (all of it)")


def doctor(given: argparse.Namespace) -> int:
    """Print what would stop a long run, and what the machine has; the exit code is 1 if anything would stop it."""
    from framekd.checks import problems
    from framekd.config import load, read_sources

    base = [path for path in ["config/config.yaml"] if Path(path).is_file()]
    found: list[str] = []
    try:
        values, sources = read_sources([*base, *given.configfile])
        config = load(values, sources=sources)
    except UserError as error:
        found += str(error).splitlines()
    else:
        found += map(str, problems(config, sources, targets=given.targets))
        found += [sources.locate(sentence) for sentence in _checkpoints(config)]
        found += [*_environment(config), *_disk(config, sources)]
        print(*_machine(config), sep="\n")
        if given.memory is not None:
            found += _memory(config, given.memory)
        if given.slurm:
            from framekd.commands.cluster import problems_of_slurm

            found += [sources.locate(sentence) for sentence in problems_of_slurm(config)]
    for sentence in found:
        print(f"- {sentence}")
    print("framekd doctor: " + (f"{len(found)} problems" if found else "nothing is in the way"))
    return int(bool(found))


def _environment(config: Config) -> list[str]:
    import torch
    import torchaudio

    from framekd import audio, download

    out = [*audio.problems()]
    if torch.__version__.split("+")[0].rsplit(".", 1)[0] != torchaudio.__version__.split("+")[0].rsplit(".", 1)[0]:
        out.append(
            f"torch {torch.__version__} and torchaudio {torchaudio.__version__} do not belong together; make env"
        )
    if config.audioset.download.enabled and config.miniature is None:
        out += download.problems(config.audioset.download)
    if config.tracking.tensorboard and importlib.util.find_spec("tensorboard") is None:
        out.append("tracking.tensorboard: tensorboard is not installed; pip install framekd[monitor]")
    if config.tracking.wandb and importlib.util.find_spec("wandb") is None:
        out.append("tracking.wandb: Weights & Biases is not installed; pip install wandb")
    return out


def _machine(config: Config) -> Iterator[str]:
    """What there is: GPUs, and free disk space beside what a run needs. A cluster's login node may have no GPU."""
    import torch

    wanted = max(stage.gpu for stage in config.resources.values())
    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    need = f"the configuration asks for {wanted} per training" if wanted else "the configuration asks for none"
    yield f"GPUs on this machine: {', '.join(names) or 'none'}; {need}" + (_driver() if wanted and not names else "")
    for folder, needed in _needed(config).items():
        free = shutil.disk_usage(_existing(folder)).free / 1e9
        yield f"disk of {folder}: {free:,.0f} GB free, about {needed:,.0f} GB still needed"


def _memory(config: Config, gib: float) -> list[str]:
    """Print the memory of each training, and return what does not fit into a GPU of `gib` (0: the one that is here)."""
    import torch

    from framekd.train.footprint import survey

    size = int(gib * 2**30)
    if not size and torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
    print("model    stage     batch  peak GiB  of it fixed  accumulate" + (f" on {size / 2**30:g} GiB" if size else ""))
    out = []
    for name, stage, recipe, found, parts in survey(config, size or None):
        peak, fixed = found.peak / 2**30, (found.kept + found.batches) / 2**30
        shown = f"{name:<8} {stage:<8} {recipe.batch_size:>6} {peak:>9.2f} {fixed:>12.2f}"
        print(f"{shown}  {'does not fit' if parts is None else parts}", flush=True)
        if parts is None:
            out.append(f"{stage} {name}: {peak:.2f} GiB are needed clip by clip; take a larger GPU")
    return out


def _driver() -> str:
    """Why torch sees no GPU, where the machine has one."""
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "; without one on a node of the cluster too, a run takes months"
    return f"; nvidia-smi shows {shown.stdout.strip() or 'none'}, but torch cannot use it (make env chooses its build)"


def _needed(config: Config) -> dict[str, float]:
    """Gigabytes that a run still has to write, by folder."""
    from framekd.graph import STAGES, WEIGHTS, Graph

    graph = Graph(config)
    if config.miniature is not None:
        return {config.results_dir: 1.0}
    share = 0.75 if config.audioset.encoding == "flac" else 1.0
    out = {config.data_dir: 0.0}
    for group in graph.groups:
        shards = graph.stores(group)
        out[config.data_dir] += share * STORE_GB[group] * sum(not Path(s).is_file() for s in shards) / len(shards)
    ensembles = [f"{graph.results}/ensembles/{setting}.h5" for setting in graph.teacher_settings]
    left = ENSEMBLE_GB * sum(not Path(file).is_file() for file in ensembles)
    for stage, size in zip(STAGES, (TEACHER_GB, STUDENT_GB)):
        runs = [graph.run(stage, s, *one) for s in graph.settings_of(stage) for one in graph.members]
        left += size * sum(not Path(f"{run}/{WEIGHTS}").is_file() for run in runs)
    out[config.results_dir] = out.get(config.results_dir, 0.0) + left
    return out


def _existing(folder: str) -> Path:
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return path


def _disk(config: Config, sources: Sources) -> list[str]:
    """Folders whose disk has less free space than the run needs; two folders may be on one disk."""
    by_disk: dict[int, list[tuple[str, float]]] = {}
    for folder, needed in _needed(config).items():
        by_disk.setdefault(_existing(folder).stat().st_dev, []).append((folder, needed))
    out = []
    for folders in by_disk.values():
        free, needed = shutil.disk_usage(_existing(folders[0][0])).free / 1e9, sum(gb for _, gb in folders)
        if free < needed:
            key = "data_dir" if folders[0][0] == config.data_dir else "results_dir"
            what = f"{key}: the disk of {' and '.join(f for f, _ in folders)} has {free:,.0f} GB free"
            out.append(sources.locate(f"{what} of about {needed:,.0f} GB needed; free some, or name another folder"))
    return out


def _checkpoints(config: Config) -> list[str]:
    """Problems of the published checkpoints that the run starts from: no address, one name for two, a wrong sum."""
    from framekd.fetch import check_sum

    step1 = config.models if config.step1.source == "external" else []
    step2 = [model for model in config.models if model not in config.step2_trained]
    wanted = [(f"step1.external.{m}", config.step1.external.get(m)) for m in step1]
    wanted += [(f"step2.external.{m}", config.step2.external.get(m)) for m in step2]
    out, seen = [], dict[Path, str]()
    for key, external in wanted:
        if external is None or not external.url:
            out.append(f"{key}: no address; write url: https://…/file.pt")
            continue
        path = Path(config.data_dir) / "checkpoints" / external.url.rsplit("/", 1)[-1]
        if seen.setdefault(path, external.url) != external.url:
            out.append(f"{key}: another address ends in {path.name} too, and both would be kept as {path}")
        elif path.is_file() and external.sha256:
            try:
                check_sum(path, external.sha256, "remove it to fetch it again")
            except UserError as error:
                out.append(f"{key}: {error}")
    return out
