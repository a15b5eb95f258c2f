"""What the tables are made of: rows of the evaluations, the paper's numbers, names and order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from framekd.config import Config, UserError

AVERAGE = "average"
ENSEMBLE = "ensemble"
PUBLISHED = Path("config/published")
SETTING_ORDER = ("li_et_al", "proposed", "without_kd", "without_rnn", "without_step2")
SETTING_TITLES = {
    "li_et_al": "Li et al.",
    "proposed": "proposed",
    "without_kd": "without KD",
    "without_rnn": "without RNN",
    "without_step2": "without Step 2",
}
TASKS = ("DESED", "DC16-T2", "MAESTRO")
MODES = {"frozen": "frozen", "finetune": "fine-tuned"}
CHECKPOINT_TITLES = {"step1": "Step 1", "step2": "Step 2", "full": "full"}


def title_of(setting: str) -> str:
    """How a setting of Table I is called in print."""
    return SETTING_TITLES.get(setting, setting.replace("_", " "))


def ordered_settings(config: Config) -> list[str]:
    """Settings in the order of the paper's Table I, the user's own ones last."""
    known = [name for name in SETTING_ORDER if name in config.settings]
    return known + [name for name in config.settings if name not in known]


def teacher_settings(config: Config) -> list[str]:
    """Settings that train teachers of their own (others share them)."""
    return [name for name in ordered_settings(config) if config.teachers_of(name) == name]


def read(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; it is written by an earlier stage, run that first")
    frame = pd.read_csv(path, dtype={"seed": "string"})
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: expected columns {', '.join(columns)}, but {', '.join(missing)} is missing")
    return frame


def evaluation(results_dir: str | Path, stage: str, setting: str) -> pd.DataFrame:
    """Rows of one evaluation: columns model, seed, psds1 (percent)."""
    frame = read(Path(results_dir) / "evaluation" / stage / f"{setting}.csv", ("model", "seed", "psds1"))
    return frame.assign(psds1=frame["psds1"] * 100)


def scored(results_dir: str | Path, config: Config, setting: str) -> pd.DataFrame:
    """What Table I reports for `setting`: its students, or its teachers where it has no student."""
    if config.setting(setting).student is not None:
        return evaluation(results_dir, "students", setting)
    return evaluation(results_dir, "teachers", config.teachers_of(setting) or setting)


def published(name: str, keys: list[str], *, directory: str | Path = PUBLISHED) -> dict[tuple, float]:
    """The paper's numbers of table `name`, by `keys`."""
    frame = read(Path(directory) / f"{name}.csv", (*keys, "published"))
    return {tuple(row[key] for key in keys): float(row["published"]) for row in frame.to_dict("records")}
