"""Make .venv from requirements.lock with uv, unless it is up to date. Standard library only.

uv.lock, and with it `uv sync`, cannot be used: it records the address of the package index, and a lock file in this
repository must work with any index or mirror. `uv pip sync` installs exactly the pins of requirements.lock.

    python tools/env.py [--reinstall]    --reinstall: install all packages again, if their files were damaged
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".complete"
# The interpreter outside .venv: .venv may be the one that runs this, and may be removed.
BASE = getattr(sys, "_base_executable", sys.executable)


def run(*command: str | Path) -> None:
    """Run a command in the environment; CalledProcessError if it fails."""
    subprocess.check_call([str(part) for part in command], env={**os.environ, "VIRTUAL_ENV": str(VENV)})


def wanted() -> str:
    """What the environment depends on: the pins, the metadata of the package, the interpreter and the folder."""
    text = (ROOT / "requirements.lock").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return f"{hashlib.sha256(text).hexdigest()} {sys.version_info.major}.{sys.version_info.minor} {ROOT}"


def starts(program: str) -> bool:
    """Whether a program of .venv runs."""
    try:
        subprocess.run([VENV / "bin" / program, "--version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def fault() -> str | None:
    """Why the present .venv cannot be used; None if it can."""
    if not VENV.exists():
        return "it does not exist"
    if not STAMP.is_file():
        return "it is incomplete"
    if STAMP.read_text().strip() != wanted():
        return "requirements.lock, pyproject.toml, the interpreter or the folder changed"
    return None if starts("python") else "its interpreter does not start"


def make(*options: str) -> None:
    """Install the pinned packages and this package; make .venv and uv first where they are missing or damaged."""
    STAMP.unlink(missing_ok=True)
    if not (starts("python") and starts("uv")):
        bootstrap()
    uv = [str(VENV / "bin" / "uv"), "pip"]
    run(*uv, "sync", "--quiet", "--compile-bytecode", *options, ROOT / "requirements.lock")
    run(*uv, "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ROOT)
    link_ffmpeg()
    STAMP.write_text(wanted() + "\n")


def bootstrap() -> None:
    """Make an empty .venv with the pinned uv."""
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    try:
        run(BASE, "-m", "venv", VENV)
    except subprocess.CalledProcessError:
        sys.exit("make env: this Python cannot make virtual environments; install its venv package (python3-venv).")
    pins = (ROOT / "requirements.lock").read_text().split()
    uv = next(pin for pin in pins if pin.startswith("uv=="))
    run(VENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv)


def link_ffmpeg() -> None:
    """Link the ffmpeg of imageio-ffmpeg as `ffmpeg`, if the system has none: yt-dlp looks for it under this name."""
    link = VENV / "bin" / "ffmpeg"
    if link.exists() or shutil.which("ffmpeg"):
        return
    query = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
    binary = subprocess.check_output([VENV / "bin" / "python", "-c", query], text=True).strip()
    link.unlink(missing_ok=True)
    link.symlink_to(binary)


def main(*options: str) -> None:
    """Check the environment, and make it if needed."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this check is for older interpreters
        sys.exit(f"make env: Python 3.11 or newer is needed, not {sys.version.split()[0]}: make env PYTHON=python3.12")
    why = "--reinstall" if options else fault()
    if why is None:
        return
    print(f"make env: setting up .venv ({why}); this takes a few minutes", flush=True)
    try:
        make(*options)
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[0]).name
        sys.exit(f"make env: {name} failed with status {error.returncode}; correct the error above and run it again.")
    print("make env: done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
