"""Make .venv from requirements.lock, or find that it is whole already. Standard library only.

A half-made or damaged environment (no stamp, another lock, an interpreter that does not start, a file that is missing
or has another size than its package recorded) is removed and made again.
"""

from __future__ import annotations

import csv
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".complete"
LOCK = ROOT / "requirements.lock"
KERNELS = ROOT / "tools" / "same_kernels.c"
# Not the .venv's own Python, which is removed first, should that be the one that runs this.
BASE = getattr(sys, "_base_executable", sys.executable)


def wanted() -> str:
    """What the environment is made from: the pins, the package's own metadata and the interpreter."""
    text = LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + KERNELS.read_bytes()
    return f"{hashlib.sha256(text).hexdigest()} {sys.version_info.major}.{sys.version_info.minor} {ROOT}"


def fault() -> str | None:
    """Why the present .venv cannot be used; None if it can."""
    if not VENV.exists():
        return "there is none yet"
    if not STAMP.is_file():
        return "it was not finished"
    if STAMP.read_text().strip() != wanted():
        return "the pins, the interpreter or the folder changed"
    try:
        subprocess.run([VENV / "bin" / "python", "-c", ""], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "its interpreter does not start"
    return next(filter(None, map(_damage, VENV.glob("lib/python*/site-packages/*.dist-info/RECORD"))), None)


def _damage(record: Path) -> str | None:
    site = record.parent.parent
    with record.open(newline="") as rows:
        for name, _, size in csv.reader(rows):
            if not size or name.endswith((".pyc", "RECORD")):
                continue
            try:
                found = (site / name).stat().st_size
            except OSError:
                return f"{record.parent.name}: {name} is missing"
            if found != int(size):
                return f"{record.parent.name}: {name} has {found} bytes, not {size}"
    return None


def make() -> None:
    """Remove what is there and make the environment anew."""
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    run = subprocess.check_call
    try:
        run([BASE, "-m", "venv", str(VENV)])
    except subprocess.CalledProcessError:
        sys.exit("make env: this Python cannot make virtual environments; install its venv package (python3-venv).")
    pins = LOCK.read_text().splitlines()
    uv = next(pin for pin in pins if pin.startswith("uv=="))
    python = str(VENV / "bin" / "python")
    run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", uv.split(";")[0].strip()])
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV)}
    install = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", python]
    run([*install, "--compile-bytecode", "-r", str(LOCK)], env=environment)  # each job starts a second sooner
    run([*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], env=environment)
    link_ffmpeg(python)
    same_kernels(python)
    STAMP.write_text(wanted() + "\n")


def link_ffmpeg(python: str) -> None:
    """Give the environment a program called ffmpeg: the system's is used where there is one."""
    if shutil.which("ffmpeg"):
        return
    query = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
    binary = subprocess.check_output([python, "-c", query], text=True).strip()
    (VENV / "bin" / "ffmpeg").symlink_to(binary)


def same_kernels(python: str) -> None:
    """Have every Python of the environment load tools/same_kernels.c before torch, so that all makers' CPUs agree."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", query], text=True).strip())
    library = site / "same_kernels.so"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        print("make env: no C compiler, so spectrograms keep the rounding of this processor's maker (docs/models.md)")
        return
    subprocess.check_call([*compiler.split(), "-shared", "-fPIC", "-O2", "-o", str(library), str(KERNELS)])
    load = f"import ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)\n"
    (site / "same_kernels.pth").write_text(load)


def main() -> None:
    """Check, and make if needed."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this very check is for older ones
        sys.exit(f"make env: Python 3.11 or newer is needed, not {sys.version.split()[0]}: make env PYTHON=python3.12")
    why = fault()
    if why is None:
        return
    print(f"make env: setting up .venv ({why}); a few minutes", flush=True)
    try:
        make()
    except subprocess.CalledProcessError as error:
        name = Path(error.cmd[0]).name
        sys.exit(f"make env: {name} failed ({error.returncode}); mend what it says above and run again.")
    print("make env: done", flush=True)


if __name__ == "__main__":
    main()
