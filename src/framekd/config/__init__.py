"""The configuration: one source of truth for defaults, schema, YAML and documentation.

The defaults of these models *are* the paper (Schmid et al., ICASSP 2025). ``config/config.yaml``, the JSON schema and
``docs/configuration.md`` are generated from them (see :mod:`framekd.generated`), and a test keeps them equal. Every
other configuration file states only its differences.
"""

from framekd.config.base import Block, UserError, difference, field, identity, merge
from framekd.config.data import GROUPS, LABEL_FILES, AudioSet, Download, Miniature
from framekd.config.downstream import PAPER_TASKS, DesedTask, Downstream, OwnTask, Task, TaskSearch
from framekd.config.load import Config, load, load_files
from framekd.config.recipe import (
    SEARCH,
    Augment,
    HeadRecipe,
    Recipe,
    Search,
    TeacherRecipe,
    TrainRecipe,
    WeakRecipe,
    WeakSearch,
)
from framekd.config.sets import Archive, DesedData, Fetch, HearData
from framekd.config.sizes import SIZES, resolve_sizes, unknown_model
from framekd.config.sources import Sources, read_sources, read_yaml
from framekd.config.stages import (
    MODELS,
    SETTINGS,
    ClipSoftLabels,
    Evaluation,
    External,
    FrontEnds,
    Published,
    Resources,
    Setting,
    SoftFile,
    Step1,
    Step2,
    Student,
    Teacher,
    Tracking,
    Watch,
)

__all__ = [
    "GROUPS",
    "LABEL_FILES",
    "MODELS",
    "PAPER_TASKS",
    "SEARCH",
    "SETTINGS",
    "SIZES",
    "Archive",
    "AudioSet",
    "Augment",
    "Block",
    "ClipSoftLabels",
    "Config",
    "DesedData",
    "DesedTask",
    "Download",
    "Downstream",
    "Evaluation",
    "External",
    "Fetch",
    "FrontEnds",
    "HeadRecipe",
    "HearData",
    "Miniature",
    "OwnTask",
    "Published",
    "Recipe",
    "Resources",
    "Search",
    "Setting",
    "SoftFile",
    "Sources",
    "Step1",
    "Step2",
    "Student",
    "Task",
    "TaskSearch",
    "Teacher",
    "TeacherRecipe",
    "Tracking",
    "TrainRecipe",
    "UserError",
    "Watch",
    "WeakRecipe",
    "WeakSearch",
    "difference",
    "field",
    "identity",
    "load",
    "load_files",
    "merge",
    "read_sources",
    "read_yaml",
    "resolve_sizes",
    "unknown_model",
]
