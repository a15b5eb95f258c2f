"""Compiled kernels: where they are kept, and that nothing is paid before they are needed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from framekd.metrics import _compile


def test_importing_the_metrics_compiles_and_loads_nothing():
    code = "import sys, framekd.metrics; print([m for m in ('numba', 'torch', 'scipy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "n"))
    assert _compile.cache_folder() == tmp_path / "n"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("FRAMEKD_CACHE", str(tmp_path / "f"))
    assert _compile.cache_folder() == tmp_path / "f" / "numba"
    monkeypatch.delenv("FRAMEKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert _compile.cache_folder() == tmp_path / "x" / "framekd" / "numba"
    assert stat.S_IMODE((tmp_path / "x" / "framekd" / "numba").stat().st_mode) == 0o700


def test_without_a_home_a_temporary_folder_of_the_users_own(monkeypatch, tmp_path):
    for name in ("NUMBA_CACHE_DIR", "FRAMEKD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be a folder
    monkeypatch.setattr(_compile.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = _compile.cache_folder()
    assert folder.is_dir() and tmp_path in folder.parents
    assert _compile.cache_folder() == folder  # shared by the next process
    monkeypatch.setattr(_compile.os, "getuid", lambda: 12345)
    assert _compile.cache_folder() != folder  # somebody else's code is not loaded


def test_kernels_are_kept_on_disk():
    block = _compile.kernels("psds").block
    assert _compile.cache_folder() in Path(block._cache.cache_path).parents
    assert list(Path(block._cache.cache_path).glob("_psds_kernels*.nbi"))


def test_threads():
    assert _compile.cores(3) == 3 and _compile.cores() == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="at least 1"):
        _compile.cores(0)
