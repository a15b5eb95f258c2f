"""Code versions: a change of a stage's code does not go unnoticed."""

import json
import shutil

import pytest

from framekd import versions


def test_the_recorded_hashes_are_those_of_the_code():
    recorded = json.loads((versions.ROOT / versions.FILE).read_text())
    stale = [stage for stage in versions.ENTRIES if recorded[stage]["code"] != versions.code_hash(stage)]
    assert not stale, (
        f"the code of {', '.join(stale)} has changed: raise the version in src/framekd/{versions.FILE} of each stage "
        "whose results have changed, then run `make versions`"
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources, whose hashes are taken."""
    copy = tmp_path / "framekd"
    shutil.copytree(versions.ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(versions, "ROOT", copy)
    return copy


def hashes():
    return {stage: versions.code_hash(stage) for stage in versions.ENTRIES}


def changed(package, module, old, new):
    path = package / module
    text = path.read_text()
    assert old in text
    before = hashes()
    path.write_text(text.replace(old, new, 1))
    after = hashes()
    return {stage for stage in before if before[stage] != after[stage]}


def test_comments_and_docstrings_are_no_code(package):
    assert changed(package, "losses.py", '"""', '"""Other words. ') == set()
    assert changed(package, "losses.py", "def bce", "# a comment\n\n\ndef bce") == set()


def test_a_change_is_seen_in_every_stage_that_imports_the_module_and_in_no_other(package):
    found = changed(package, "losses.py", "def bce(", "UNUSED = 1\n\n\ndef bce(")
    assert {"train", "search"} <= found and not found & {"acquire", "tables", "miniature"}
    assert changed(package, "report/__init__.py", "__all__", "UNUSED = 1\n__all__") == {"report"}
    assert "evaluate" in changed(package, "units.py", "SAMPLE_RATE = 16_000", "SAMPLE_RATE = 8_000")


def test_recording_keeps_the_numbers_and_names_the_stages(package, monkeypatch, capsys):
    recorded = {stage: {"version": 3, "code": code} for stage, code in hashes().items()}
    monkeypatch.setattr(versions, "_recorded", lambda: recorded)
    (package / "report" / "__init__.py").write_text("UNUSED = 1\n")
    versions.main()
    written = json.loads((package / versions.FILE).read_text())
    assert {about["version"] for about in written.values()} == {3}
    assert (
        capsys.readouterr().out.startswith("report: the code has changed") and written["report"] != recorded["report"]
    )
