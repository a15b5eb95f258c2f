"""`config/released.yaml` differs from the paper exactly where the table in docs/decisions.md says."""

import math
import re
from pathlib import Path

import pytest
import yaml

from framekd.config import load_files

ROOT = Path(__file__).resolve().parents[2]
PAPER, RELEASED = ROOT / "config" / "config.yaml", ROOT / "config" / "released.yaml"
PAGE = ROOT / "docs" / "decisions.md"


def flat(values, prefix=""):
    """{dotted key: value} of nested mappings."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def configured(*paths):
    return flat(load_files(*paths).model_dump(by_alias=True))


def table():
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (D\d+) \|$", PAGE.read_text(), re.M)
    parsed = {"not set": None}
    return {
        key: (parsed.get(a, yaml.safe_load(a)) if a != "not set" else None, yaml.safe_load(b), d)
        for key, a, b, d in rows
    }


def differences():
    """{D number: (what is done here, reason or keys)} of the page's list of every difference."""
    rows = re.findall(r"^\| (D\d+) \| .+? \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    return {number: (here, why) for number, here, why in rows}


def test_the_files_differ_exactly_where_the_table_says():
    paper, released = configured(PAPER), configured(PAPER, RELEASED)
    different = {
        key: (paper.get(key), released[key])
        for key in released
        if released[key] != paper.get(key) and released[key] not in ({}, None)
    }
    assert paper.keys() - released.keys() <= {"sizes"}
    said = {key: (a, b) for key, (a, b, _) in table().items()}
    assert different == {key: pair for key, pair in said.items() if pair[0] != pair[1]}
    assert {key: released[key] for key in said} == {key: b for key, (_, b) in said.items()} and len(said) == 24


def test_the_file_holds_the_keys_of_the_table_and_no_other():
    written = flat(yaml.safe_load(RELEASED.read_text()))
    assert written.keys() == table().keys()


def test_every_line_names_its_difference_and_the_page_explains_it():
    lines = [line for line in RELEASED.read_text().splitlines() if re.search(r": [{\d\w]", line.split("#")[0])]
    assert len(lines) == len(table())
    for line, (_, _, number) in zip(lines, table().values()):
        assert f"# {number}" in line, line
        assert differences()[number][0] == "switch", number


def test_every_difference_of_the_released_code_is_on_the_page_with_a_reason():
    found = differences()
    assert list(found) == [f"D{number}" for number in range(1, 35)]
    assert {here for here, _ in found.values()} == {"switch", "both", "harmless", "not reproduced"}
    assert all(len(why.split()) >= 4 for here, why in found.values() if here != "switch")


def test_every_switch_is_a_key_that_the_released_configuration_sets():
    rows, switches = table(), {number: why for number, (here, why) in differences().items() if here == "switch"}
    for number, why in switches.items():
        keys = [key for key in re.findall(r"`([\w.-]+)`", why) if "." in key]
        assert keys and set(keys) == {key for key, (_, _, of) in rows.items() if of == number}, number
    assert {number for _, _, number in rows.values()} == switches.keys()


def test_what_the_released_values_do_to_a_teacher():
    recipe = load_files(PAPER, RELEASED).setting("proposed").teacher.recipe
    assert recipe.steps() == 11_730 < recipe.warmup_steps and not recipe.replacement
    assert load_files(PAPER, RELEASED).setting("li_et_al").student.recipe.augment.frame_shift == 0
    assert recipe.rate("BEATs") == 7e-5 and load_files(PAPER).setting("proposed").teacher.recipe.rate("BEATs") == 1e-4


def test_the_released_threshold_is_a_logit_of_one_half():
    task = load_files(PAPER, RELEASED).downstream.DC16_T2
    assert math.log(task.threshold / (1 - task.threshold)) == pytest.approx(0.5, abs=1e-12)
