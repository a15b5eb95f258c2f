"""docs/first-hour.md as it stands: its commands in order, in an empty folder, and what they print.

The authors' server and the hub are local. The published model is shortened to two blocks, whose weights add nothing, so
that the page takes seconds; it hears the three tones that the page's recordings have.
"""

from __future__ import annotations

import functools
import http.server
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from hub_server import as_the_hub
from released_files import their_file

from framekd import releases
from framekd.cli import main
from framekd.config.sizes import SIZES
from framekd.labels import known_strong
from framekd.metrics._compile import cache_folder
from framekd.models import build_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
BLOCKS = 2
HEARD = {"Beep, bleep": 700, "Hum": 150, "Whistle": 2500}
"""Classes of the stand-in's weights, and their tones in Hz."""


def stand_in() -> dict[str, torch.Tensor]:
    """ATST-F's Step 3 weights in the authors' layout, which detect tones.

    A third of a token's channels each are the level of a tone's band above the mean of all bands, with both signs. Two
    channels are large constants, which set the scale of the last norm.
    """
    state = their_file("ATST-F", "strong_1", depth=BLOCKS)
    banks, names = build_model("ATST-F", n_classes=1).encoder.front_end.banks, known_strong()[0].names
    patches, offset = torch.zeros(768, 64, 4), torch.zeros(768)
    head, bias = torch.zeros(447, 768), torch.full((447,), -9.0)
    offset[0], offset[1] = 40.0, -40.0
    for place, (name, hertz) in enumerate(HEARD.items()):
        level = torch.full((64, 4), -1 / 256)
        level[banks[:, round(hertz * 1024 / 16_000)].argmax()] += 1 / 4
        signs = torch.tensor([1.0, -1.0]).repeat(127)
        patches[2 + 254 * place : 256 + 254 * place] = signs[:, None, None] * level
        head[names.index(name), 2 + 254 * place : 256 + 254 * place] = signs * 20 / 254 * 40 / 384**0.5
        bias[names.index(name)] = -6.0  # 20 times the level, less 6
    state["model.atst.patch_embed.patch_embed.weight"] = patches.reshape(768, 256)
    state["model.atst.patch_embed.patch_embed.bias"] = offset
    state["model.atst.norm_frame.weight"] = torch.ones(768)
    return {**state, "strong_head.weight": head, "strong_head.bias": bias}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def world(tmp_path, monkeypatch):
    """An empty working folder, and what stands in another place there: {as printed here: as the page has it}."""
    monkeypatch.setitem(SIZES, "ATST-F", {**SIZES["ATST-F"], "depth": BLOCKS})
    for name in ("site", "work", "storage"):
        (tmp_path / name).mkdir()
    torch.save(stand_in(), tmp_path / "site" / "ATST-F_strong_1.pt")
    clone = tmp_path / "work" / "framekd"
    clone.mkdir()
    for name in ("Snakefile", "workflow", "scripts", "config", "profiles", "src"):
        (clone / name).symlink_to(ROOT / name)
    (clone / ".venv").symlink_to(sys.prefix)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "site"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache_folder()))  # compiled kernels stay where they are
    monkeypatch.setenv("FRAMEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRAMEKD_PUBLISHED", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.chdir(tmp_path / "work")
    with as_the_hub(tmp_path, monkeypatch, tmp_path / "storage"):
        yield {
            f"http://127.0.0.1:{server.server_port}": releases.BASE.rstrip("/"),
            f"{tmp_path}/cache": "~/.cache/framekd",
            os.environ["HF_ENDPOINT"]: "https://huggingface.co",
        }
    server.shutdown()
    server.server_close()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Commands of a block, continued lines joined, and the lines that each prints."""
    found: list[tuple[str, list[str]]] = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            found[-1][1].append(line)
            continue
        command = line.removeprefix("$ ")
        while command.endswith("\\"):
            command = command.removesuffix("\\") + next(lines).strip()
        found.append((command, []))
    return found


def shown(lines: list[str]) -> re.Pattern:
    """What a page's lines stand for: … in a line is any text, and a line of its own any lines."""
    text = ""
    for line in lines:
        parts = map(re.escape, line.rstrip().split("…"))
        text += r"(?:.*\n)*?" if line.strip() == "…" else "[^\n]*?".join(parts) + " *\n"
    return re.compile(text)


def run(command: str) -> str:
    """Run a command in the working folder, programs of this package in this process, and return what it prints."""
    *before, last = command.split(" | ")
    words, said = shlex.split(last), io.StringIO()
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] not in ("framekd", "python"):
        there = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=there)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
    piped = Path("../piped")
    piped.write_bytes(subprocess.run(["bash", "-c", before[0]], capture_output=True).stdout if before else b"")
    with redirect_stdout(said), redirect_stderr(said), piped.open() as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stream)
        if words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
        else:
            assert main(words[1:]) == 0, said.getvalue()
    return said.getvalue()


def test_every_command_prints_what_the_page_says(world):
    tried = 0
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S):
        if kind == "python":
            Path(re.match(r"# (\w+\.py)\n", text)[1]).write_text(text, encoding="utf-8")
            continue
        assert kind == "console"
        for command, lines in commands(text):
            said = run(command)
            for here, there in world.items():
                said = said.replace(here, there)
            wanted = "\n".join(lines)
            assert shown(lines).fullmatch(said), f"$ {command}\n--- page\n{wanted}\n--- printed\n{said}"
            tried += 1
    assert tried > 15
    page = Path("found/kitchen.wav.html").read_text(encoding="utf-8")
    assert "<audio" in page and "Whistle" in page and "https://" not in page
    assert Path("found/kitchen.wav.png").read_bytes().startswith(b"\x89PNG")


def test_another_text_than_the_pages_is_noticed():
    pattern = shown(["a … b", "…", "end"])
    assert pattern.fullmatch("a 1 b\nend\n") and pattern.fullmatch("a 1 b\nx\ny\nend\n")
    assert not pattern.fullmatch("a 1 b\nx\nend\nmore\n") and not pattern.fullmatch("a 1 c\nend\n")
