"""The folder of a downstream task: who made it, and which lists it must have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from framekd.errors import UserError

Events = dict[str, list[tuple[float, float, str]]]
"""Events by clip: (onset, offset, class), in seconds."""
MARK = ".framekd.json"
"""Name of the file that a folder has which the pipeline made."""
VOCABULARY = "labelvocabulary.csv"
# Layouts of the DESED tool, the DCASE baseline and the miniature.
DESED_LISTS = {
    "weak": ("metadata/train/weak.tsv", "weak.tsv"),
    "synthetic": (
        "metadata/train/synthetic21_train/soundscapes.tsv",
        "metadata/train/synthetic.tsv",
        "synthetic.tsv",
    ),
    "validation": ("metadata/validation/validation.tsv", "validation.tsv"),
}
PUBLIC = "public"
"""DESED's public evaluation set, which a folder needs only if it is scored."""
PUBLIC_LIST = "metadata/eval/public.tsv"


def find(root: Path, *places: str) -> Path:
    """The first of `places` below `root` that exists; UserError lists them all if none does."""
    for place in places:
        if (root / place).exists():
            return root / place
    raise UserError(f"{root}: found none of {', '.join(places)}; docs/downstream.md shows the layout")


def inside(name: str, path: Path) -> str:
    """`name` of an audio file that the list at `path` gives; UserError if it leads out of the folder of audio."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(
            f"{path}: {name[:80]!r} is not the name of an audio file in the task's folder; correct the list"
        )
    return name


def made_here(folder: str | Path) -> bool:
    """Whether the pipeline made a folder."""
    return (Path(folder) / MARK).is_file()


def by_hand(folder: str | Path) -> bool:
    """Whether somebody has filled a folder: it has files, hidden ones aside, and the pipeline did not make it."""
    path = Path(folder)
    filled = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    return filled and not made_here(path)


def lists(task: str, folder: str | Path, *, public: bool = False) -> list[str]:
    """The lists of labels that the folder of a task must have; of several possible names, the one that is there.

    `public` adds the list of DESED's public evaluation set.
    """
    root = Path(folder)
    if task == "DESED":
        places = [next((p for p in names if (root / p).is_file()), names[0]) for names in DESED_LISTS.values()]
        places += [PUBLIC_LIST] if public else []
    elif task == "DC16-T2":
        places = [VOCABULARY, *(f"{split}.json" for split in ("train", "valid", "test"))]
    elif task == "MAESTRO":
        places = [VOCABULARY, *(f"{name}.json" for name in folds(root, least=3))]
    else:
        places = ["train.tsv", "test.tsv"]
    return [str(root / place) for place in places]


def folds(root: Path, *, least: int = 0) -> list[str]:
    """Names of the folds (fold00, fold01, …) that a folder has; at least the first `least`."""
    there = {path.stem for path in root.glob("fold*.json")}
    return sorted(there | {f"fold{i:02d}" for i in range(least)})


def missing(task: str, folder: str | Path, *, public: bool = False) -> list[str]:
    """Those of :func:`lists` that are absent, named within the folder."""
    wanted = map(Path, lists(task, folder, public=public))
    return [str(path.relative_to(folder)) for path in wanted if not path.is_file()]


def splits(task: str, root: Path) -> Sequence[str]:
    """Names of the splits of a task that HEAR prepared."""
    return folds(root) if task == "MAESTRO" else ("train", "valid", "test")
