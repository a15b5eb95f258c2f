"""tools/explain_page.py: docs/explain.md is written again from a run."""

from pathlib import Path

import pytest
import yaml
from loaded_tool import load_tool

from framekd.cli import main
from framekd.config import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explain.md").read_text()


@pytest.fixture(scope="module")
def tool():
    return load_tool("explain_page")


def test_every_output_of_the_page_is_replaced_and_nothing_else(tool):
    asked = []
    page = tool.regenerate(PAGE, lambda arguments: asked.append(arguments) or f"output {len(asked)}\n")
    assert len(asked) == PAGE.count("\n.venv/bin/framekd ") >= 4
    for i, arguments in enumerate(asked, 1):
        assert f"```\n.venv/bin/framekd {' '.join(arguments)}\n```\n```\noutput {i}\n```\n" in page
    answers = iter(found["output"] for found in tool.BLOCK.finditer(PAGE))
    assert tool.regenerate(page, lambda arguments: next(answers)) == PAGE


def test_the_commands_of_the_page_are_commands(tool, capsys, monkeypatch, tmp_path):
    """Without any run, each ends with a sentence about the missing file, not with one about its arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("config.yaml", "demo.yaml"):
        (tmp_path / "config" / name).symlink_to(ROOT / "config" / name)
    for path, content in tool.files(PAGE).items():
        (tmp_path / path).write_text(content)
        load(yaml.safe_load(content))
    for found in tool.BLOCK.finditer(PAGE):
        assert main(found["arguments"].split()) == 1
        assert "results/" in capsys.readouterr().err
