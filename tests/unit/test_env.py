"""`make env` sets up what is missing, leaves a good environment alone, and fails with one sentence."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env(tmp_path, monkeypatch):
    """tools/env.py, looking at a complete small environment; the commands that it runs are recorded."""
    spec = importlib.util.spec_from_file_location("env_tool", ROOT / "tools" / "env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for program in ("python", "uv"):
        (venv / "bin" / program).symlink_to(sys.executable)
    (venv / "bin" / "ffmpeg").touch()
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "STAMP", venv / ".complete")
    module.STAMP.write_text(module.wanted() + "\n")
    module.commands = []

    def run(*command):
        module.commands.append([str(part) for part in command])
        if "venv" in command:
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "ffmpeg").touch()

    monkeypatch.setattr(module, "run", run)
    return module


def test_a_complete_environment_is_left_alone(env, capsys):
    env.main()
    assert env.commands == [] and capsys.readouterr().out == ""


def test_a_half_made_environment_is_completed(env):
    env.STAMP.unlink()
    assert env.fault() == "it is incomplete"
    env.main()
    sync, install = env.commands
    assert sync[1:3] == ["pip", "sync"] and sync[-1] == str(ROOT / "requirements.lock")
    assert install[1:3] == ["pip", "install"] and install[-2:] == ["-e", str(ROOT)]
    assert env.fault() is None


def test_a_failed_installation_is_tried_again(env, monkeypatch):
    def fails(*command):
        raise subprocess.CalledProcessError(2, list(command))

    env.STAMP.write_text("other pins")
    monkeypatch.setattr(env, "run", fails)
    with pytest.raises(SystemExit, match="uv failed with status 2; correct the error above"):
        env.main()
    assert env.fault() == "it is incomplete"


def test_other_pins_are_installed(env):
    env.STAMP.write_text("other pins")
    assert "requirements.lock" in env.fault()
    env.main()
    assert len(env.commands) == 2 and env.fault() is None


@pytest.mark.parametrize("program", ["python", "uv"])
def test_an_environment_without_a_working_interpreter_or_uv_is_made_again(env, program):
    env.STAMP.unlink()
    (env.VENV / "bin" / program).unlink()
    env.main()
    assert env.commands[0][1:3] == ["-m", "venv"]
    [bootstrap] = [command for command in env.commands if command[2] == "pip"]
    assert bootstrap[-1].startswith("uv==") and len(env.commands) == 4


def test_an_interpreter_that_does_not_start_is_noticed(env):
    (env.VENV / "bin" / "python").unlink()
    assert env.fault() == "its interpreter does not start"


def test_a_machine_without_venv_gets_one_sentence(env, monkeypatch):
    def fails(*command):
        raise subprocess.CalledProcessError(1, list(command))

    monkeypatch.setattr(env, "run", fails)
    (env.VENV / "bin" / "python").unlink()
    with pytest.raises(SystemExit, match="install its venv package"):
        env.main()


def test_damaged_packages_are_installed_again_on_demand(env):
    env.main("--reinstall")
    assert "--reinstall" in env.commands[0]


def test_the_lock_has_pins_alone_and_no_address():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines and all("==" in line and "://" not in line and not line.startswith("-") for line in lines)
