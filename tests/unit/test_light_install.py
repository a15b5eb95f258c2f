"""The built wheel in an environment that has nothing but what the wheel's core requires."""

from __future__ import annotations

import functools
import http.server
import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from released_files import their_file

from framekd.labels import known_strong

ROOT = Path(__file__).parents[2]
RECORDING = sorted((ROOT / "miniature" / "recordings").glob("*.ogg"))[0]
EXTRAS = ("snakemake", "yt_dlp", "numba", "deepdiff", "sed_scores_eval", "tensorboard", "uv", "pytest")


def build_wheel(folder: Path) -> Path:
    """The wheel, built from a copy of what it is made of."""
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, folder], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def requirements(metadata: list[str] | None) -> list[str]:
    """Names of the packages that are required where no extra is asked for."""
    found = [Requirement(text) for text in metadata or []]
    return [one.name for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def link_packages(names: list[str], site: Path) -> None:
    """Link what the distributions `names` installed, and all that they require, into `site`."""
    waiting, done = list(names), set[str]()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in done:
            continue
        done.add(name)
        package = importlib.metadata.distribution(name)
        waiting += requirements(package.requires)
        for part in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            if not (site / part).exists():
                (site / part).symlink_to(package.locate_file(part))


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel and its core requirements."""
    folder = tmp_path_factory.mktemp("light")
    wheel = build_wheel(folder)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run(install, check=True, capture_output=True)
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        required = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    link_packages(requirements(required), next((folder / "env" / "lib").glob("python*")) / "site-packages")
    return python


def run(python: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [python, "-I", *arguments]
    return subprocess.run(command, cwd="/", env=kept | environment, capture_output=True, text=True, check=True)


def test_the_core_detects_events_with_a_model_by_name(light, tmp_path):
    bias = torch.full((447,), -9.0)
    bias[known_strong()[0].names.index("Speech")] = 9.0
    (tmp_path / "site").mkdir()
    torch.save(
        their_file("ATST-F", "strong_1", depth=12) | {"strong_head.bias": bias},
        tmp_path / "site" / "ATST-F_strong_1.pt",
    )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    there = {"FRAMEKD_CACHE": f"{tmp_path}/cache", "FRAMEKD_PUBLISHED": f"http://127.0.0.1:{server.server_port}"}
    code = (
        "import importlib.util, sys\n"
        f"assert not [name for name in {EXTRAS} if importlib.util.find_spec(name)]\n"
        "from framekd.cli import main\n"
        f"sys.exit(main(['predict', {str(RECORDING)!r}, '--model', 'atst-f', '--out', {str(tmp_path)!r}]))"
    )
    run(light, "-c", code, **there)
    server.shutdown()
    server.server_close()
    _, *events = (tmp_path / f"{RECORDING.name}.events.tsv").read_text().splitlines()
    assert [event.split("\t")[2] for event in events] == ["Speech"]
    assert (tmp_path / "cache" / "models" / "ATST-F_strong_1.pt.sha256").is_file()


def test_help_imports_nothing_slow(light):
    program = light.with_name("framekd")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = run(light, program, "--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(command in said for command in ("predict", "models", "doctor"))
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3  # seconds of a processor
    slow = ("torch", "numpy", "pydantic", "pandas", "yaml", "requests", "matplotlib", "platformdirs")
    code = f"import sys, framekd.cli as c; c.parser().format_help(); print([m for m in {slow} if m in sys.modules])"
    assert run(light, "-c", code).stdout.strip() == "[]"


def test_what_needs_an_extra_says_which(light, tmp_path):
    code = "from framekd.cli import main; main(['explain', 'results'])"
    assert "pip install 'framekd[workflow]'" in run(light, "-c", code).stderr
    code = "from framekd.metrics._compile import kernels; kernels('psds')"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(light, "-c", code)
    assert "pip install 'framekd[evaluate]'" in caught.value.stderr
