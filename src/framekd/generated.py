"""Write the files that follow from one source: the YAML of the paper, its JSON schema and its page from
:mod:`framekd.config`; the conda environment from ``requirements.lock``.

``python -m framekd.generated`` writes them, ``--check`` says which are out of date (exit 1).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from framekd.config import Config, HeadRecipe, Recipe, difference

YAML, SCHEMA, PAGE = "config/config.yaml", "workflow/schemas/config.schema.json", "docs/configuration.md"
LOCK, CONDA = "requirements.lock", "workflow/envs/framekd.yaml"
HEAD = """\
# yaml-language-server: $schema=../workflow/schemas/config.schema.json
# The paper: Schmid et al., "Effective Pre-Training of Audio Transformers for Sound Event Detection", ICASSP 2025.
# Written by `make docs` from the defaults in src/framekd/config. Change a value here and run again: only the stages
# that use it, and what follows from them, are run. For an experiment of your own, put the difference alone into a file
# beside this one and add `--configfile config/yours.yaml`. docs/configuration.md explains every key.
"""
# Where the paper (or, where it is silent, the source that docs/decisions.md names) gives a stage's numbers.
SECTIONS = {
    "step2.recipe": "Sec. 3.2; the paper gives no numbers, these are PaSST's and EfficientAT's (docs/decisions.md)",
    "teacher.recipe": "Sec. 3.3: 30 epochs, learning rate from the grid below; augmentation of Sec. 3.3 and the README",
    "student.recipe": "Sec. 3.3: 120 epochs, distillation weight 0.9, of the augmentations only mixup and wavmix",
    "downstream.DESED.frozen": "Sec. 4: the protocol of Li et al.; learning rate by grid there, not published",
    "downstream.DESED.finetune": "Sec. 4: layer-wise decay 0.5 as ATST-SED",
    "downstream.DC16-T2.frozen": "the released code's README",
    "downstream.DC16-T2.finetune": "the released code's defaults",
    "downstream.MAESTRO.frozen": "Sec. 4: crops of 10 s; HEAR's 50 epochs",
    "downstream.MAESTRO.finetune": "Sec. 4",
}
PAGE_HEAD = """\
# Configuration

Every key, its default (the paper's value) and what it means. Written by `make docs` from `src/framekd/config`.
A configuration file states only what differs: `config/demo.yaml` and `config/released.yaml` are examples.
"""


CONDA_HEAD = """\
# For `snakemake --sdm conda`: the pins of requirements.lock. Written by `make docs`.
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11
  - pip
  - ffmpeg
  - pip:
"""


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """`value` as JSON and YAML know it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _yaml(block: BaseModel, path: str = "") -> list[str]:
    """The lines of a block. A recipe states what differs from the block `recipe`."""
    indent = "  " * path.count(".")
    lines: list[str] = []
    for name, info in type(block).model_fields.items():
        value, key = getattr(block, name), info.alias or name
        where = f"{path}{key}"
        note = SECTIONS.get(where) or info.description
        comment = f"  # {note}" if note else ""
        space = [""] if "." not in where else []
        if isinstance(value, HeadRecipe) and path:
            stage = difference(_plain(value), Recipe().model_dump(mode="json"))
            if where.count(".") > 1:  # of a downstream task
                lines.append(f"{indent}{key}: {_scalar(stage)}{comment}")
            else:
                lines += [*space, f"{indent}{key}:{comment}", *_nested(stage, indent + "  ")]
        elif isinstance(value, BaseModel) and not _is_small(value) and where.count(".") < 2:
            lines += [*space, f"{indent}{key}:{comment}", *_yaml(value, where + ".")]
        elif isinstance(value, dict) and value and not _is_short(value):
            lines.append(f"{indent}{key}:{comment}")
            lines += [f"{indent}  {k}: {_scalar(_plain(v))}" for k, v in value.items()]
        else:
            lines.append(f"{indent}{key}: {_scalar(_plain(value))}{comment}")
    return lines


def _is_small(block: BaseModel) -> bool:
    """Whether a block is written on one line: at most four values, none of them a list or block."""
    values = _plain(block).values()
    return len(values) <= 4 and not any(isinstance(value, dict | list) for value in values)


def _is_short(values: dict[str, Any]) -> bool:
    """Whether a dict is written on one line: at most four entries, plain numbers or dicts of them."""
    inner = [n for value in values.values() for n in (value.values() if isinstance(value, dict) else [value])]
    return len(values) <= 4 and all(isinstance(n, int | float) for n in inner)


def _nested(values: dict[str, Any], indent: str) -> list[str]:
    return [f"{indent}{key}: {_scalar(value)}" for key, value in values.items()]


def _rows(block: BaseModel, prefix: str = "") -> list[str]:
    rows: list[str] = []
    for name, info in type(block).model_fields.items():
        value, key = getattr(block, name), prefix + (info.alias or name)
        if isinstance(value, BaseModel):
            rows += [f"| **`{key}`** | | {info.description} |", *_rows(value, key + ".")]
        else:
            text = _scalar(_plain(value)).replace("|", "\\|")
            rows.append(f"| `{key}` | `{text if len(text) < 80 else text[:77] + '…'}` | {info.description} |")
    return rows


def conda(lock: str) -> str:
    """A conda environment with the pins of `lock`; ffmpeg comes from conda, everything else as pinned."""
    pins = "".join(f"      - {_quoted(pin)}\n" for pin in lock.splitlines() if pin.strip())
    return f"{CONDA_HEAD}{pins}"


def _quoted(pin: str) -> str:
    return f'"{pin}"' if ";" in pin else pin


def render() -> dict[str, str]:
    """The generated files: path → text."""
    config = Config()
    page = [PAGE_HEAD, "| key | default | meaning |", "|---|---|---|", *_rows(config)]
    return {
        YAML: HEAD + "\n".join(_yaml(config)) + "\n",
        SCHEMA: json.dumps(Config.model_json_schema(by_alias=True), indent=1, ensure_ascii=False) + "\n",
        PAGE: "\n".join(page) + "\n",
        CONDA: conda(Path(LOCK).read_text()),
    }


def main(arguments: list[str]) -> int:
    """Write the generated files, or check them."""
    stale = [path for path, text in render().items() if not Path(path).is_file() or Path(path).read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is not what src/framekd/config says; run `make docs`")
        return bool(stale)
    for path in stale:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(render()[path])
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
