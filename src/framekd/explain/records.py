"""The records of finished jobs.

Every finished job leaves a record beside its log (:func:`framekd.pipeline.log.record`). A record's name is the path
of that file below `logs/`, without suffix, such as ``students/proposed/BEATs/seed1``: it says which job it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framekd.config import UserError
from framekd.graph import WEIGHTS
from framekd.plan import Plan

COVERAGE = "coverage"


@dataclass(frozen=True)
class Record:
    """What a finished job was. `name` is its place below `logs/` of the results folder `root`."""

    name: str
    root: Path
    rule: str
    job: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    began: float
    seconds: float

    @property
    def ended(self) -> float:
        """When the job ended, in seconds since 1970."""
        return self.began + self.seconds

    @property
    def version(self) -> int | None:
        """The code version that the job ran with."""
        return self.job.get("version")


class Records:
    """The records of all finished jobs below some results folders, by the files that they made."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._made: dict[Path, Record] = {}
        for root in dict.fromkeys(path.resolve() for path in roots):
            for record in _read_records(root):
                for output in record.outputs:
                    before = self._made.setdefault(Path(output).resolve(), record)
                    if before.ended < record.ended:  # the same file, made by another rule before
                        self._made[Path(output).resolve()] = record

    def of(self, path: str | Path) -> Record | None:
        """The record of the job that made `path`, a file or the folder of a checkpoint."""
        return self._made.get(Path(target_of(path)).resolve())

    def parents(self, record: Record) -> dict[str, Record]:
        """The records of the jobs that made the inputs of `record`, by name."""
        found = (self.of(path) for path in record.inputs)
        return {parent.name: parent for parent in found if parent is not None and parent is not record}

    def ancestors(self, record: Record) -> dict[str, Record]:
        """The parents of `record`, their parents, and so on, by name; the nearest first."""
        out: dict[str, Record] = {}
        waiting = [record]
        while waiting:
            for name, parent in self.parents(waiting.pop(0)).items():
                if name not in out:
                    out[name] = parent
                    waiting.append(parent)
        return out

    def coverage(self, record: Record) -> list[str]:
        """The coverage tables that `record` and its ancestors have waited for."""
        related = (record, *self.ancestors(record).values())
        paths = {path for one in related for path in (*one.inputs, *one.outputs)}
        return sorted(path for path in paths if Path(path).parent.name == COVERAGE)


def _read_records(root: Path) -> Iterator[Record]:
    logs = root / "logs"
    for path in sorted(logs.rglob("*.json")):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            yield Record(
                name=path.relative_to(logs).with_suffix("").as_posix(),
                root=root,
                rule=about["rule"],
                job=about["job"],
                inputs=tuple(about["inputs"]),
                outputs=tuple(about["outputs"]),
                began=about["began"],
                seconds=about["seconds"],
            )
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not the record of a job; remove it and run its job again") from None


def target_of(path: str | Path) -> str:
    """The file that `path` means: the weights where it is the folder of a checkpoint."""
    return str(Path(path) / WEIGHTS) if (Path(path) / WEIGHTS).is_file() else str(path)


def find(path: str | Path, plan: Plan) -> tuple[Record, Records]:
    """The record of the job that made `path`, among those of its results folder and of the configured one.

    Raises:
        UserError: no record says which job made it.
    """
    above = [folder for folder in Path(path).resolve().parents if (folder / "logs").is_dir()]
    records = Records([*above[:1], Path(plan.results)])
    record = records.of(path)
    if record is None:
        there = "no job has left a record of it" if Path(path).exists() else "no such file"
        raise UserError(f"{path}: {there}; make it with `snakemake {target_of(path)}`, then ask again")
    return record, records
