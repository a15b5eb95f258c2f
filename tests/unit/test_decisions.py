"""`config/released.yaml` differs from the paper exactly where the table in docs/decisions.md says."""

import re
from pathlib import Path

import yaml

from framekd.config import load_files

ROOT = Path(__file__).resolve().parents[2]
PAPER, RELEASED = ROOT / "config" / "config.yaml", ROOT / "config" / "released.yaml"


def flat(values, prefix=""):
    """{dotted key: value} of nested mappings."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def configured(*paths):
    return flat(load_files(*paths).model_dump(by_alias=True))


def table():
    rows = re.findall(
        r"^\| `(.+?)` \| (.+?) \| (.+?) \| (D\d+) \|$", (ROOT / "docs" / "decisions.md").read_text(), re.M
    )
    parsed = {"not set": None}
    return {
        key: (parsed.get(a, yaml.safe_load(a)) if a != "not set" else None, yaml.safe_load(b), d)
        for key, a, b, d in rows
    }


def test_the_files_differ_exactly_where_the_table_says():
    paper, released = configured(PAPER), configured(PAPER, RELEASED)
    different = {
        key: (paper.get(key), released[key])
        for key in released
        if released[key] != paper.get(key) and released[key] not in ({}, None)
    }
    assert paper.keys() - released.keys() <= {"sizes"}
    assert different == {key: (a, b) for key, (a, b, _) in table().items()} and len(different) == 8


def test_the_file_holds_nothing_but_differences():
    written = flat(yaml.safe_load(RELEASED.read_text()))
    assert written.keys() == table().keys()


def test_every_line_names_its_difference_and_the_page_explains_it():
    lines = [line for line in RELEASED.read_text().splitlines() if re.search(r": [{\d\w]", line.split("#")[0])]
    page = (ROOT / "docs" / "decisions.md").read_text()
    assert len(lines) == len(table())
    for line, (_, _, number) in zip(lines, table().values()):
        assert f"# {number}" in line, line
        assert f"**{number}, " in page


def test_what_the_released_values_do_to_a_teacher():
    recipe = load_files(PAPER, RELEASED).setting("proposed").teacher.recipe
    assert recipe.steps() == 11_730 < recipe.warmup_steps and not recipe.replacement
    assert load_files(PAPER, RELEASED).setting("li_et_al").student.recipe.augment.frame_shift == 0
