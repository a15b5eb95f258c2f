"""`make env` notices what is wrong with an environment."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env(tmp_path, monkeypatch):
    """tools/env.py, looking at a small environment that is whole."""
    spec = importlib.util.spec_from_file_location("env_tool", ROOT / "tools" / "env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    site = venv / "lib" / "python3.11" / "site-packages"
    (site / "pkg-1.dist-info").mkdir(parents=True)
    (site / "pkg").mkdir()
    (site / "pkg" / "__init__.py").write_text("x = 1\n")
    (site / "pkg-1.dist-info" / "RECORD").write_text("pkg/__init__.py,sha256=x,6\npkg-1.dist-info/RECORD,,\n")
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "STAMP", venv / ".complete")
    module.STAMP.write_text(module.wanted())
    return module


def test_a_whole_environment_is_left_alone(env):
    assert env.fault() is None


def test_a_half_made_one_is_noticed(env):
    env.STAMP.unlink()
    assert env.fault() == "it was not finished"


def test_other_pins_are_noticed(env):
    env.STAMP.write_text("another lock")
    assert "the pins" in env.fault()


def test_an_interpreter_that_does_not_start_is_noticed(env):
    (env.VENV / "bin" / "python").unlink()
    assert env.fault() == "its interpreter does not start"


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_package_is_noticed(env, damage):
    file = next(env.VENV.glob("lib/*/site-packages/pkg/__init__.py"))
    file.unlink() if damage == "missing" else file.write_text("x")
    assert "pkg/__init__.py" in env.fault()


def test_the_lock_has_pins_alone_and_no_address():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines and all("==" in line and "://" not in line and not line.startswith("-") for line in lines)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="MKL is in torch for x86-64 alone"
)
@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
def test_every_python_of_the_environment_has_the_same_kernels(env, tmp_path):
    """The answer is there before anything is imported, where torch's MKL looks for it first."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "new")], check=True)
    python = str(tmp_path / "new" / "bin" / "python")
    asked = "import ctypes; print(ctypes.CDLL(None).mkl_serv_intel_cpu_true())"
    assert subprocess.run([python, "-c", asked], capture_output=True).returncode  # nobody answers yet
    env.same_kernels(python)
    assert subprocess.check_output([python, "-c", asked], text=True).strip() == "1"
