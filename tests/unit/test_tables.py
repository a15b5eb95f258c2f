"""The tables: arithmetic against hand-computed values, published numbers, refusal of gaps, equal bytes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from finished_run import evaluations, write_evaluations

from framekd import config, tables

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "config" / "published"


@pytest.fixture
def run(tmp_path):
    settings = config.load({"results_dir": str(tmp_path)})
    write_evaluations(tmp_path, settings)
    return tmp_path, *evaluations(settings, tmp_path)


def downstream(results: Path) -> list[Path]:
    return sorted(results.glob("downstream/*/*/*.csv"))


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
    _, table, _ = run
    frame = tables.table1(table, published_dir=PUBLISHED)
    assert list(frame.columns) == ["setting", "model", "mean", "std", "n", "published", "difference"]
    order = ["li_et_al", "proposed", "without_kd", "without_rnn", "without_step2"]
    assert list(dict.fromkeys(frame["setting"])) == order
    rows = pd.concat(map(pd.read_csv, table["proposed"]))
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
    results, table, _ = run
    frame = tables.table1(table, published_dir=PUBLISHED).set_index(["setting", "model"])
    plain = pd.concat(map(pd.read_csv, results.glob("evaluation/teachers/without_rnn/*/*.csv")))
    expected = 100 * plain.loc[plain["model"] == "ASiT", "psds1"].mean()
    assert frame.loc[("without_kd", "ASiT"), "mean"] == pytest.approx(expected)


def test_teachers_have_average_and_ensemble(run):
    _, _, own = run
    rows = pd.concat(map(pd.read_csv, own["proposed"]))
    frame = tables.teachers(own, published_dir=PUBLISHED)
    assert list(dict.fromkeys(frame["setting"])) == ["proposed", "without_rnn", "without_step2"]
    assert set(frame["model"]) == {*config.MODELS, tables.AVERAGE, tables.ENSEMBLE}
    ensemble = frame[(frame["setting"] == "proposed") & (frame["model"] == tables.ENSEMBLE)].iloc[0]
    assert ensemble["mean"] == pytest.approx(100 * rows.loc[rows["model"] == "ensemble", "psds1"].item())
    average = frame[(frame["setting"] == "proposed") & (frame["model"] == tables.AVERAGE)].iloc[0]
    assert average["mean"] == pytest.approx(100 * rows.loc[rows["model"] != "ensemble", "psds1"].mean())
    assert ensemble["n"] == 1 and math.isnan(ensemble["std"]) and ensemble["published"] == 47.1


def test_table2_has_every_cell(run):
    results, _, _ = run
    paths = downstream(results)
    frame = tables.table2(paths, published_dir=PUBLISHED)
    values = frame.drop(columns=["mean_without_penalty", "std_without_penalty"])
    assert len(frame) == 90 + 18 and not values.isna().any().any()
    assert len(tables.wide_table2(frame)) == 15 + 3
    rows = pd.read_csv(paths[0])
    first = rows.iloc[0]
    same = (frame["model"] == first["model"]) & (frame["checkpoint"] == first["checkpoint"])
    cell = frame[same & (frame["mode"] == "frozen") & (frame["task"] == first["task"])].iloc[0]
    assert cell["mean"] == pytest.approx(100 * rows.loc[rows["mode"] == "frozen", "value"].mean())
    rows[rows["mode"] != "frozen"].to_csv(paths[0], index=False)
    with pytest.raises(config.UserError, match="frozen"):
        tables.table2(paths, published_dir=PUBLISHED)


def test_desed_stands_with_the_penalty_and_without(run):
    frame = tables.table2(downstream(run[0]), published_dir=PUBLISHED)
    desed = frame["task"] == "DESED"
    assert frame.loc[~desed, ["mean_without_penalty", "std_without_penalty"]].isna().all().all()
    np.testing.assert_allclose(frame.loc[desed, "mean_without_penalty"], frame.loc[desed, "mean"] + 25)
    np.testing.assert_allclose(frame.loc[desed, "std_without_penalty"], frame.loc[desed, "std"])
    wide = tables.wide_table2(frame)
    row = frame[desed].iloc[0]
    with_penalty = tables.percent(row["mean"], row["std"], row["published"])
    text = f"{with_penalty}; without penalty {row['mean'] + 25:.1f} ± {row['std']:.1f}"
    assert wide.loc[0, "frozen DESED"] == text and "penalty" not in wide.loc[0, "frozen MAESTRO"]
    assert tables.own_notes(frame) == tables.notes_of(frame, miniature=False)[1:] and len(tables.own_notes(frame)) == 1


def test_the_average_over_models_has_the_spread_of_its_runs(run):
    paths = downstream(run[0])
    frame = tables.table2(paths, published_dir=PUBLISHED).set_index(["model", "checkpoint", "mode", "task"])
    rows = pd.concat(map(pd.read_csv, paths))
    rows = rows[(rows["checkpoint"] == "full") & (rows["mode"] == "frozen") & (rows["task"] == "MAESTRO")]
    by_run = 100 * rows.groupby("seed")["value"].mean()
    cell = frame.loc[("average", "full", "frozen", "MAESTRO")]
    assert (cell["mean"], cell["std"], cell["n"]) == (pytest.approx(by_run.mean()), pytest.approx(by_run.std()), 2)
    assert cell["published"] == pytest.approx((21.9 + 0.3 + 28.7 + 22.3 + 4.2) / 5)
    some = pd.read_csv(paths[0])
    some[some["seed"] == 1].to_csv(paths[0], index=False)
    with pytest.raises(config.UserError, match="different seeds or folds of DC16-T2"):
        tables.table2(paths, published_dir=PUBLISHED)


STEPS = ["untrained", "step1", "step2", "full"]


def test_baselines_of_table_2_are_an_untrained_row_a_model_and_one_constant_guess(tmp_path):
    settings = config.load({"results_dir": str(tmp_path), "downstream": {"checkpoints": STEPS}})
    write_evaluations(tmp_path, settings)
    paths = downstream(tmp_path)
    frame = tables.table2(paths, published_dir=PUBLISHED)
    assert len(frame) == 6 * (3 + 18) + 3
    untrained = frame[frame["checkpoint"] == "untrained"]
    assert set(untrained["mode"]) == {"frozen"} and untrained["published"].isna().all()
    wide = tables.wide_table2(frame)
    assert len(wide) == 6 * 4 + 1
    first = wide.iloc[0]
    assert first["checkpoint"] == "untrained" and first["fine-tuned DESED"] == "–" and "±" in first["frozen DESED"]
    guess = wide.iloc[-1]
    assert guess["model"] == "constant guess" and (wide["model"] == "constant guess").sum() == 1
    assert guess["frozen DC16-T2"] == guess["fine-tuned DC16-T2"]
    of_first = pd.read_csv(tmp_path / "downstream" / "DC16-T2" / "ASiT" / "untrained.csv")
    value = 100 * of_first.loc[of_first["mode"] == "constant", "value"].mean()
    assert guess["frozen DC16-T2"].startswith(f"{value:.1f} ±")
    assert len(tables.own_notes(frame)) == 2


def test_a_model_without_its_untrained_row_is_refused(tmp_path):
    settings = config.load({"results_dir": str(tmp_path), "downstream": {"checkpoints": STEPS}})
    write_evaluations(tmp_path, settings)
    (tmp_path / "downstream" / "DESED" / "M2D" / "untrained.csv").unlink()
    with pytest.raises(config.UserError, match="no value for M2D untrained frozen DESED"):
        tables.table2(downstream(tmp_path), published_dir=PUBLISHED)


def test_orderings_of_the_full_checkpoint_over_step_1(run):
    frame = tables.table2(downstream(run[0]), published_dir=PUBLISHED)
    none = pd.DataFrame(columns=["setting", "model"])
    found = tables.orderings(none, none, frame).set_index(["stage", "model"])
    assert list(dict.fromkeys(found.index.get_level_values(0))) == [
        "frozen DESED", "frozen DESED without penalty", "frozen DC16-T2", "frozen MAESTRO",
    ]  # fmt: skip
    cells = frame.set_index(["model", "checkpoint", "mode", "task"])["mean"]
    row = found.loc[("frozen DESED", "average")]
    full, step1 = (cells["average", step, "frozen", "DESED"] for step in ("full", "step1"))
    assert row["gap"] == pytest.approx(full - step1)
    assert row["published_gap"] == pytest.approx(47.7 - (27.0 + 14.0 + 0.0 + 27.7 + 9.5) / 5)
    assert math.isnan(found.loc[("frozen DESED without penalty", "average"), "published_gap"])


def settings_with(levels: dict[str, float], folder: Path) -> dict[str, Path]:
    """Evaluations of one model with three seeds, 0.01 apart, from a level per setting."""
    paths = {}
    for name, level in levels.items():
        rows = [{"model": "ATST-F", "seed": s, "psds1": level + 0.01 * s} for s in (1, 2, 3)]
        rows.append({"model": "ensemble", "seed": None, "psds1": level + 0.05})
        paths[name] = folder / f"{name}.csv"
        pd.DataFrame(rows).to_csv(paths[name], index=False)
    return paths


def test_orderings_follow_the_seeds(tmp_path):
    """A gap beyond the seeds' spread is shown, its opposite is reversed, and a small one is neither."""
    levels = {"proposed": 0.4, "without_kd": 0.3, "without_rnn": 0.2, "without_step2": 0.401, "li_et_al": 0.45}
    paths = settings_with(levels, tmp_path)
    one = tables.table1(paths, published_dir=PUBLISHED)
    own = tables.teachers({name: paths[name] for name in ("proposed", "without_rnn")}, published_dir=PUBLISHED)
    frame = tables.orderings(one, own)
    found = frame[(frame["stage"] == "Table I") & (frame["model"] == "ATST-F")].set_index("ordering")
    assert found["verdict"].to_dict() == {
        "KD over none": "shown",
        "RNN over none": "shown",
        "Step 2 over none": "within spread",
        "all three steps over none": "reversed",
    }
    assert found.loc["KD over none", "gap"] == pytest.approx(10)
    assert found.loc["KD over none", "spread"] == pytest.approx(math.sqrt(2))
    assert found.loc["KD over none", "published_gap"] == pytest.approx(4.0)
    together = frame[frame["ordering"].str.startswith("ensemble")]
    assert len(together) == 2 and together["gap"].tolist() == pytest.approx([3, 3])


def test_significance_follows_the_gap(tmp_path):
    paths = settings_with({"proposed": 0.4, "without_kd": 0.3, "without_rnn": 0.4}, tmp_path)
    frame = tables.significance(paths).set_index("comparison")
    clear, equal = frame.loc["proposed > without_kd"], frame.loc["proposed > without_rnn"]
    assert clear["eps_min"] == 0 and clear["significant"] and not equal["significant"]
    assert (frame["comparisons"] == 5).all() and (frame["alpha"] == 0.05).all() and (frame["seeds"] == "3 vs 3").all()


def test_a_gap_is_refused(run):
    table = run[1]
    whole = table["proposed"]
    table["proposed"] = [path for path in whole if "BEATs" not in path]
    with pytest.raises(config.UserError, match="no score of BEATs"):
        tables.table1(table, published_dir=PUBLISHED)
    table["proposed"] = whole[1:]
    with pytest.raises(config.UserError, match="different seeds"):
        tables.table1(table, published_dir=PUBLISHED)
    table["proposed"], path = whole, Path(whole[3])
    pd.read_csv(path).assign(psds1=np.nan).to_csv(path, index=False)
    with pytest.raises(config.UserError, match="empty"):
        tables.table1(table, published_dir=PUBLISHED)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"BEATs/seed1\.csv"):
        tables.table1(table, published_dir=PUBLISHED)


def write_all(results: Path, table: tables.Paths, own: tables.Paths, **note) -> dict[str, bytes]:
    tables.write_table("table1", table, results / "table1.csv", published_dir=PUBLISHED, **note)
    tables.write_table("teachers", own, results / "teachers.csv", published_dir=PUBLISHED, **note)
    tables.write_table("table2", downstream(results), results / "table2.csv", published_dir=PUBLISHED, **note)
    tables.write_significance(table, results / "significance.csv", alpha=0.05, comparisons=5, epsilon=0.2)
    return {path.name: path.read_bytes() for path in results.glob("*.*")}


def test_written_tables_are_equal_bytes_and_readable(run):
    first = write_all(*run)
    assert write_all(*run) == first
    ends = {f"{name}.{end}" for name in ("table1", "table2", "teachers") for end in ("csv", "md", "tex")}
    assert first.keys() == ends | {"significance.csv"}
    text = first["table1.md"].decode()
    assert "| without Step 2 |" in text and "(46.5, " in text and "miniature" not in text
    tex = first["table1.tex"].decode()
    assert tex.count(r"\\") == 6 and r"\toprule" in tex and "±" not in tex


def test_the_miniature_is_called_not_comparable(run):
    results = run[0]
    write_all(*run, miniature=True)
    for name, end in itertools.product(("table1", "teachers", "table2"), ("md", "tex")):
        assert "not comparable" in (results / f"{name}.{end}").read_text()


ENSEMBLE_NOTE = "The published ensemble is of the paper's five models, ours of M2D, ASiT: they do not compare."


@pytest.mark.parametrize("kind", ["table1", "teachers", "table2"])
def test_a_table_of_some_models_says_what_the_published_averages_are_of(run, kind):
    results, *settings = run

    def write(name: str) -> pd.DataFrame:
        given = {"table1": settings[0], "teachers": settings[1], "table2": downstream(results)}[kind]
        if kind != "table2":
            given = {setting: [path for path in paths if Path(path).exists()] for setting, paths in given.items()}
        return tables.write_table(kind, given, results / f"{name}.csv", published_dir=PUBLISHED)

    write("five")
    for path in [*results.glob("evaluation/**/*.csv"), *results.glob("downstream/**/*.csv")]:
        if not set(pd.read_csv(path)["model"]) & {"M2D", "ASiT", "ensemble"}:
            path.unlink()
    frame = write("two")
    average = frame[frame["model"] == tables.AVERAGE].iloc[0]
    keys = [name for name in ("setting", "checkpoint", "mode", "task") if name in frame]
    same = frame[(frame[keys] == average[keys]).all(axis=1) & frame["model"].isin(["M2D", "ASiT"])]
    assert average["published"] == pytest.approx(same["published"].mean()) and len(same) == 2
    names = "ASiT, M2D" if kind == "table2" else "M2D, ASiT"  # as the rows follow each other
    expected = [f"Averages are of {names}, the published ones too."] + [ENSEMBLE_NOTE] * (kind == "teachers")
    assert tables.own_notes(frame)[: len(expected)] == expected
    for note, end in itertools.product(expected, ("md", "tex")):
        assert note in (results / f"two.{end}").read_text() and note not in (results / f"five.{end}").read_text()


def test_where_no_published_average_stands_no_note_does(run):
    frame = tables.table1(run[1], published_dir=PUBLISHED)
    other = frame[frame["model"].isin(["M2D", tables.AVERAGE])].assign(published=math.nan)
    assert tables.own_notes(other) == []
