"""The model card beside an exported model: how to use it, where it comes from, what it scores, how to cite it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from framekd.files import write_text

NAME = "README.md"
UNKNOWN = "The checkpoint states no licence; those of its training data and of its first weights apply."
SCORES = {
    "psds1": "PSDS1",
    "psds1_variance_penalty": "PSDS1 with the penalty on the variance",
    "map": "mAP of clip labels",
    "clips": "clips",
    "classes": "classes that occur",
}
"""Columns of an evaluation that a card shows."""


def write_card(
    path: str | Path,
    spec: Mapping[str, Any],
    *,
    form: str,
    licence: str | None,
    scores: Mapping[str, str],
    repository: str | None = None,
) -> Path:
    """Write the card of the exported file `path` into its folder.

    It is README.md, unless there is another one: then its name is that of the file with .md. None but the card of the
    same file is replaced.

    Args:
        spec: the model's specification.
        form: "onnx" or "torch".
        licence: name of the weights' licence, if it is known.
        scores: output of :func:`scores_of`.
        repository: where the checkpoint is published.
    Returns:
        The card's path.
    """
    path = Path(path)
    mark = f"<!-- framekd export: {path.name} -->"
    card = path.parent / NAME
    if card.exists() and mark not in card.read_text(encoding="utf-8", errors="replace"):
        card = path.with_name(path.name + ".md")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("framekd"), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    known = licence is not None and re.fullmatch(r"[A-Za-z0-9.+-]+", licence)
    text = environment.get_template("card.md.j2").render(
        spec=spec,
        form=form,
        file=path.name,
        repository=repository,
        licence=licence or UNKNOWN,
        identifier=licence.lower() if licence and known else "other",
        training=list(facts(spec.get("provenance") or {})),
        scores=[(SCORES[name], value) for name, value in scores.items()],
        citation=citation(),
    )
    write_text(card, text)
    return card


def facts(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Provenance as rows (name with dots, value); what is off, empty or absent is left out, with its details."""
    off = tuple(f"{name}_" for name, value in values.items() if value in (None, False, 0))
    for name, value in values.items():
        if name.startswith(off):
            continue
        if isinstance(value, Mapping):
            yield from facts(value, f"{prefix}{name}.")
        elif value not in (None, False, "", 0) and value != []:
            yield prefix + name, str(value).replace("|", "\\|").replace("\n", " ")


def scores_of(model: str | Path) -> dict[str, str]:
    """Scores of a checkpoint folder in a folder of results: its row under evaluation/; empty if there is none."""
    folder = Path(model).resolve()
    for root in list(folder.parents)[:4]:
        inside = folder.relative_to(root).as_posix().removeprefix("checkpoints/")
        table = root / "evaluation" / f"{inside}.csv"
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                row = next(csv.DictReader(file), {})
            return {name: row[name] for name in SCORES if row.get(name)}
    return {}


def citation() -> str:
    """BibTeX of the paper, from CITATION.cff."""
    content = yaml.safe_load(resources.files("framekd").joinpath("CITATION.cff").read_text(encoding="utf-8"))
    paper = content["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    lines = {
        "author": authors,
        "title": f"{{{paper['title']}}}",
        "booktitle": paper["collection-title"],
        "year": paper["year"],
    }
    key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}"
    return "\n".join([f"@inproceedings{{{key},", *(f"  {k} = {{{v}}}," for k, v in lines.items()), "}"])
