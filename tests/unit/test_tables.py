"""The tables: arithmetic against hand-computed values, published numbers, refusal of gaps, equal bytes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import write_evaluations

from framekd import config, tables

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "config" / "published"
MODELS = list(config.MODELS)


@pytest.fixture
def run(tmp_path):
    settings = config.load({"results_dir": str(tmp_path)})
    write_evaluations(tmp_path, settings)
    return tmp_path, settings


def test_published_numbers_are_the_papers():
    """A few cells of each table, as printed in the paper, and no cell missing."""
    one = pd.read_csv(PUBLISHED / "table1.csv").set_index(["setting", "model"])["published"]
    assert len(one) == 25 and one["proposed", "BEATs"] == 46.5 and one["li_et_al", "ATST-F"] == 40.9
    two = pd.read_csv(PUBLISHED / "table2.csv").set_index(["model", "checkpoint", "mode", "task"])["published"]
    assert len(two) == 90 and not two.isna().any()
    assert two["BEATs", "full", "frozen", "MAESTRO"] == 0.3 and two["ASiT", "full", "finetune", "DESED"] == 47.6
    teachers = pd.read_csv(PUBLISHED / "teachers.csv").set_index(["setting", "model"])["published"]
    assert len(teachers) == 18 and teachers["proposed", "ensemble"] == 47.1


def test_table1_matches_a_computation_by_hand(run):
    results, settings = run
    frame = tables.table1(results, settings, published_dir=PUBLISHED)
    assert list(frame.columns) == ["setting", "model", "mean", "std", "n", "published", "difference"]
    assert list(dict.fromkeys(frame["setting"])) == [
        "li_et_al", "proposed", "without_kd", "without_rnn", "without_step2",
    ]  # fmt: skip
    rows = pd.read_csv(results / "evaluation" / "students" / "proposed.csv")
    values = 100 * rows.loc[rows["model"] == "M2D", "psds1"].to_numpy()
    cell = frame[(frame["setting"] == "proposed") & (frame["model"] == "M2D")].iloc[0]
    assert cell["mean"] == pytest.approx(values.mean()) and cell["std"] == pytest.approx(values.std(ddof=1))
    assert cell["n"] == 3 and cell["published"] == 46.3
    assert cell["difference"] == pytest.approx(values.mean() - 46.3)
    average = frame[(frame["setting"] == "proposed") & (frame["model"] == tables.AVERAGE)].iloc[0]
    per_seed = 100 * rows.groupby("seed")["psds1"].mean()
    assert average["std"] == pytest.approx(per_seed.std()) and average["published"] == pytest.approx(46.04)


def test_without_kd_scores_the_teachers(run):
    """The row without distillation is that of the plain teachers, which another setting trained."""
    results, settings = run
    frame = tables.table1(results, settings, published_dir=PUBLISHED).set_index(["setting", "model"])
    plain = pd.read_csv(results / "evaluation" / "teachers" / "without_rnn.csv")
    expected = 100 * plain.loc[plain["model"] == "ASiT", "psds1"].mean()
    assert frame.loc[("without_kd", "ASiT"), "mean"] == pytest.approx(expected)


def test_teachers_have_average_and_ensemble(run):
    results, settings = run
    frame = tables.teachers(results, settings, published_dir=PUBLISHED)
    assert set(frame["setting"]) == {"proposed", "without_rnn", "without_step2"}
    assert set(frame["model"]) == {*MODELS, tables.AVERAGE, tables.ENSEMBLE}
    ensemble = frame[(frame["setting"] == "proposed") & (frame["model"] == tables.ENSEMBLE)].iloc[0]
    assert ensemble["n"] == 1 and math.isnan(ensemble["std"]) and ensemble["published"] == 47.1


def test_table2_has_every_cell(run):
    results, settings = run
    frame = tables.table2(results, settings, published_dir=PUBLISHED)
    assert len(frame) == 90 and not frame.isna().any().any()
    assert len(tables.wide_table2(frame)) == 15


def test_orderings_follow_the_seeds(tmp_path):
    """A gap beyond the seeds' spread is shown, its opposite is reversed, and a small one is neither."""
    settings = config.load({"models": ["ATST-F"], "step2": {"train": []}})
    base = {"proposed": 0.40, "without_rnn": 0.30, "without_step2": 0.401, "li_et_al": 0.45}
    for stage in ("students", "teachers", "ensembles"):
        for name, level in base.items():
            path = tmp_path / "evaluation" / stage / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            seeds = [""] if stage == "ensembles" else [1, 2, 3]
            who = "ensemble" if stage == "ensembles" else "ATST-F"
            rows = [{"model": who, "seed": s, "psds1": level + 0.01 * i} for i, s in enumerate(seeds)]
            pd.DataFrame(rows).to_csv(path, index=False)
    frame = tables.orderings(tmp_path, settings, published_dir=PUBLISHED)
    found = frame[(frame["stage"] == "Table I") & (frame["model"] == "ATST-F")].set_index("ordering")
    assert found["verdict"].to_dict() == {
        "KD over none": "shown",
        "RNN over none": "shown",
        "Step 2 over none": "within spread",
        "all three steps over none": "reversed",
    }
    assert found.loc["RNN over none", "gap"] == pytest.approx(10)
    assert found.loc["RNN over none", "spread"] == pytest.approx(math.sqrt(2))
    assert found.loc["KD over none", "published_gap"] == pytest.approx(4.0)


def test_a_gap_is_refused(run):
    results, settings = run
    path = results / "evaluation" / "students" / "proposed.csv"
    rows = pd.read_csv(path)
    rows[rows["model"] != "BEATs"].to_csv(path, index=False)
    with pytest.raises(config.UserError, match="no score of BEATs"):
        tables.table1(results, settings, published_dir=PUBLISHED)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"proposed\.csv"):
        tables.table1(results, settings, published_dir=PUBLISHED)


def test_an_empty_score_is_refused(run):
    results, settings = run
    path = results / "evaluation" / "students" / "proposed.csv"
    rows = pd.read_csv(path)
    rows.loc[3, "psds1"] = np.nan
    rows.to_csv(path, index=False)
    with pytest.raises(config.UserError, match="empty"):
        tables.table1(results, settings, published_dir=PUBLISHED)


def test_written_tables_are_equal_bytes_and_readable(run):
    results, settings = run
    first = {}
    for _ in range(2):
        tables.write_table1(results, settings, published_dir=PUBLISHED)
        tables.write_teachers(results, settings, published_dir=PUBLISHED)
        tables.write_table2(results, settings, published_dir=PUBLISHED)
        tables.write_orderings(results, settings, published_dir=PUBLISHED)
        now = {path.name: path.read_bytes() for path in results.glob("*.*")}
        first = first or now
        assert now == first
    assert {f"{name}.{end}" for name in ("table1", "table2", "teachers") for end in ("csv", "md", "tex")} <= set(first)
    text = first["table1.md"].decode()
    assert "| without Step 2 |" in text and "(46.5, " in text and "miniature" not in text
    tex = first["table1.tex"].decode()
    assert tex.count(r"\\") == 6 and r"\toprule" in tex and "±" not in tex


def test_the_miniature_is_called_not_comparable(tmp_path):
    settings = config.load({"miniature": {}})
    write_evaluations(tmp_path, settings)
    tables.write_table1(tmp_path, settings, published_dir=PUBLISHED)
    for end in ("md", "tex"):
        assert "not comparable" in (tmp_path / f"table1.{end}").read_text()
