"""`framekd doctor`: what would stop a long run."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framekd.errors import UserError

if TYPE_CHECKING:
    from framekd.config import Config


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("doctor", help="check the environment and the configured data before a long run")
    out.set_defaults(run=doctor)
    out.add_argument("--configfile", nargs="*", default=[], help="differences from config/config.yaml")


def doctor(given: argparse.Namespace) -> int:
    """Print what would stop a long run; the exit code is 1 if anything would."""
    from framekd.config import Config, load_files

    config = load_files(*given.configfile) if given.configfile else Config()
    problems = [*_environment(config), *_data(config), *_checkpoints(config)]
    for sentence in problems:
        print(f"- {sentence}")
    print("framekd doctor: " + (f"{len(problems)} problems" if problems else "nothing is in the way"))
    return int(bool(problems))


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


def _data(config: Config) -> list[str]:
    out = [
        f"audioset.folders: {folder} does not exist" for folder in config.audioset.folders if not Path(folder).is_dir()
    ]
    out += [f"audioset.hdf5: {file} does not exist" for file in config.audioset.hdf5 if not Path(file).exists()]
    if config.audioset.labels_dir and not Path(config.audioset.labels_dir).is_dir():
        out.append(f"audioset.labels_dir: {config.audioset.labels_dir} does not exist")
    if config.published.clips and not Path(config.published.clips).is_file():
        out.append(f"published.clips: {config.published.clips} does not exist")
    for name in config.settings:
        student = config.setting(name).student
        path = student.soft_labels.path if student and student.soft_labels else None
        if path and not Path(path).is_file():
            out.append(f"settings.{name}.student.soft_labels: {path} does not exist")
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
