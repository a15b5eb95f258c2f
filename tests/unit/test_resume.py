"""A clock that was set back."""

from __future__ import annotations

import os
import time

from framekd.commands import resume


def test_a_run_waits_until_its_newest_file_is_in_the_past(tmp_path, capsys):
    old, newest = tmp_path / "old.csv", tmp_path / "store/0000.h5"
    newest.parent.mkdir()
    for path, ahead in ((old, -60.0), (newest, 1.0)):
        path.write_text("")
        os.utime(path, (time.time() + ahead,) * 2)
    (tmp_path / "gone").symlink_to("nowhere")
    resume.wait_for_clock(tmp_path / "none", tmp_path)
    assert time.time() >= newest.stat().st_mtime
    assert f"{newest} is dated 1 s in the future" in capsys.readouterr().err
    resume.wait_for_clock(tmp_path)
    assert not capsys.readouterr().err


def test_a_run_does_not_wait_for_a_clock_that_is_wrong_by_hours(tmp_path, capsys):
    path, began = tmp_path / "table1.csv", time.monotonic()
    path.write_text("")
    os.utime(path, (time.time() + 7200,) * 2)
    resume.wait_for_clock(tmp_path)
    assert time.monotonic() - began < 5 and "correct the clock" in capsys.readouterr().err
