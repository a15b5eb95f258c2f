"""The benchmark of GPUs runs at small sizes on a CPU, and finds by itself in how many parts a step fits."""

import importlib.util
import json
from pathlib import Path

import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def test_it_runs_at_small_sizes_and_divides_a_batch_that_does_not_fit(tmp_path, monkeypatch, capsys):
    plain = gpu.Case.whole

    def small_memory(case, audio_on):
        if case.recipe.accumulate == 1 and case.soft is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(case, audio_on)

    monkeypatch.setattr(gpu.Case, "whole", small_memory)
    gpu.main(["--small", "--models", "ATST-F", "--out", str(tmp_path / "bench")])
    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found["rows"]) == ["ATST-F student", "ATST-F teacher"]
    assert [row["accumulate"] for row in found["rows"].values()] == [2, 1]
    for row in found["rows"].values():
        assert min(row[key] for key in ("alone", "host", "device")) > 0
    said = capsys.readouterr()
    assert "batches of 2 in 1 parts do not fit" in said.err
    assert said.out.count("| ATST-F") == 2 == (tmp_path / "bench.md").read_text().count("| ATST-F")
