"""The rule that makes the data of a downstream task, run by Snakemake on an archive made here."""

import json
import sys
from pathlib import Path

from conftest import copy_repository, jobs, snakemake

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from task_archives import prepared, tar


def test_a_task_is_made_by_its_rule_and_not_made_again(tmp_path):
    folder = copy_repository(tmp_path / "framekd")
    (folder / "it.tar.gz").write_bytes(tar(prepared("dcase2016_task2-full", {"train": 2, "valid": 1, "test": 1})))
    counts = {"train": 2, "valid": 1, "test": 1, "classes": 2, "seconds": 2}
    fetch = {"DC16-T2": {"prepared": {"path": "it.tar.gz"}}}
    (folder / "mine.yaml").write_text(json.dumps({"downstream": {"fetch": fetch, "counts": {"DC16-T2": counts}}}))
    given = ("data/tasks/DC16-T2/state.json", "--configfile", "mine.yaml")
    run = snakemake(folder, "--cores", "1", *given)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads((folder / given[0]).read_text())["numbers"]["train"] == 2
    assert (folder / "data/dcase2016_task2/48000/train/train_1.wav").is_file()
    assert (folder / "results/logs/data/tasks/DC16-T2.json").is_file()
    assert jobs(snakemake(folder, "-n", *given)) == {}
