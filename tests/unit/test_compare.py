"""framekd compare: which of the paper's numbers and claims a table shows."""

import math
from pathlib import Path

import pandas as pd
import pytest

from framekd.cli import main
from framekd.config import UserError
from framekd.tables.claims import compare_table, comparison_text

EVERY = 11  # claims of Table II that the paper's numbers show in every model
PUBLISHED = Path(__file__).parents[2] / "config" / "published"


def ours(tmp_path, name, change=lambda frame: frame, std=0.1):
    """A table of a run whose means are the paper's own numbers, but for `change`."""
    frame = pd.read_csv(PUBLISHED / f"{name}.csv")
    frame["mean"], frame["std"], frame["n"] = frame["published"], std, 3
    frame.loc[frame["model"] == "ensemble", "std"] = float("nan")
    frame = change(frame)
    frame["difference"] = frame["mean"] - frame["published"]
    path = tmp_path / f"{name}.csv"
    frame.to_csv(path, index=False)
    return compare_table(path, published_dir=PUBLISHED)


def with_value(value, **keys):
    """Set one cell."""

    def change(frame):
        here = pd.concat([frame[key] == name for key, name in keys.items()], axis=1).all(axis=1)
        assert here.sum() == 1
        frame.loc[here, "mean"] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("name", "cells", "claims"), [("table1", 25, 4), ("teachers", 18, 3), ("table2", 90, 17 + EVERY)]
)
def test_the_papers_own_numbers_show_every_claim(tmp_path, name, cells, claims):
    found = ours(tmp_path, name)
    assert (len(found.cells), found.missing, len(found.claims)) == (cells, [], claims)
    assert [claim.name for claim in found.claims if claim.holds is not True] == []
    assert all(check.value == pytest.approx(check.published) for claim in found.claims for check in claim.checks)


def test_a_number_is_within_two_standard_deviations_or_above_or_below(tmp_path):
    for value, place in ((45.8, "within"), (45.99, "within"), (46.1, "above"), (45.5, "below")):
        found = ours(tmp_path, "table1", with_value(value, setting="proposed", model="ATST-F"))
        cell = next(cell for cell in found.cells if cell.name == "proposed ATST-F")
        assert cell.place == place and cell.difference == pytest.approx(value - 45.8)
    assert [cell.place for cell in ours(tmp_path, "teachers").cells].count("single") == 3


def test_a_gain_of_less_than_five_percent_is_too_little(tmp_path):
    found = ours(tmp_path, "table1", with_value(44.1 * 1.049, setting="proposed", model="BEATs"))
    kd = found.claims[1]
    (check,) = [check for check in kd.checks if not check.holds]
    assert kd.holds is False and check.cells.startswith("BEATs: proposed 46.3, without KD 44.1")
    assert (check.value, check.margin) == (pytest.approx(4.9), pytest.approx(-0.1))


def test_a_gap_within_the_spread_of_the_seeds_is_not_shown(tmp_path):
    found = ours(tmp_path, "table1", std=0.3)
    by_name = {claim.name: claim for claim in found.claims}
    step2 = by_name["Step 2 helps BEATs"]
    assert step2.holds is False and step2.checks[0].needed == pytest.approx(0.424, abs=1e-3)
    assert by_name["better than Li et al., every model"].holds is True


def test_an_ensemble_below_one_member_does_not_hold(tmp_path):
    found = ours(tmp_path, "teachers", with_value(45.0, setting="proposed", model="ensemble"))
    assert [claim.holds for claim in found.claims] == [False, True, True]
    assert [check.cells for check in found.claims[0].checks if not check.holds] == ["ensemble 45.0, BEATs 45.8"]


def test_the_means_over_models_decide_in_table_2(tmp_path):
    cell = {"checkpoint": "full", "mode": "frozen", "task": "MAESTRO"}
    found = ours(tmp_path, "table2", with_value(0.0, model="fPaSST", **cell))
    (lost,) = [claim for claim in found.claims if not claim.holds]
    assert lost.name == "full better than Step 1, MAESTRO frozen"
    assert lost.checks[0].value == pytest.approx((21.9 + 0.3 + 0 + 22.3 + 4.2 - 4.6 - 24.4 - 0 - 30.3 - 4.6) / 5)


def test_a_gap_of_table_2_has_to_be_larger_than_its_spread(tmp_path):
    """Deviations of single models count as independent in the mean; those of the averages are as the table says."""
    name = "full better than Step 2, DC16-T2 fine-tuned"
    claims = {claim.name: claim for claim in ours(tmp_path, "table2", std=1.0).claims}
    (mean,) = claims[name].checks
    assert mean.holds and mean.value == pytest.approx(1.82) and mean.needed == pytest.approx(math.sqrt(2 / 5))
    assert mean.cells == "mean of 5 models: full 87.1, Step 2 85.2; better in 5"
    every = claims[f"{name}, every model"]
    assert [check.holds for check in every.checks] == [False, True, False, False, False] and every.holds is False
    assert every.checks[1].cells == "BEATs: full 84.7, Step 2 77.4"
    assert every.checks[1].needed == pytest.approx(math.sqrt(2))

    def averages(frame):
        rows = frame.groupby(["checkpoint", "mode", "task"], as_index=False)[["mean", "published"]].mean()
        return pd.concat([frame, rows.assign(model="average", std=2.0, n=3)], ignore_index=True)

    claims = {claim.name: claim for claim in ours(tmp_path, "table2", averages).claims}
    (mean,) = claims[name].checks
    assert mean.needed == pytest.approx(math.sqrt(8)) and not mean.holds


@pytest.mark.parametrize("above", [True, False])
def test_trained_checkpoints_are_compared_with_the_baselines(tmp_path, above):
    """The lowest mean over the models in MAESTRO is that of frozen heads on Step 1."""

    def baselines(frame):
        base = {"std": 0.1, "n": 3}
        untrained = {"checkpoint": "untrained", "mode": "frozen", "mean": 3.0 if above else 15.0, **base}
        rows = [
            {"model": m, "task": task, **untrained}
            for m in ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT") for task in ("DESED", "DC16-T2", "MAESTRO")
        ]  # fmt: skip
        guess = {"model": "constant guess", "checkpoint": "none", "mode": "constant", "task": "MAESTRO", "mean": 0.5}
        return pd.concat([frame, pd.DataFrame([*rows, guess | base])], ignore_index=True)

    found = ours(tmp_path, "table2", baselines)
    assert (len(found.cells), found.missing, len(found.claims)) == (90, [], 17 + EVERY + 6)
    own = {claim.name: claim for claim in found.claims[17 + EVERY :]}
    untrained = own["every trained checkpoint better than untrained, MAESTRO"]
    assert untrained.holds is above
    (check,) = untrained.checks
    assert check.cells.startswith("lowest mean of 5 models: Step 1 frozen 12.8, untrained ")
    assert own["every trained checkpoint better than constant guess, MAESTRO"].holds is True
    assert own["every trained checkpoint better than constant guess, DESED"].holds is None
    assert "paper +nan" not in comparison_text(found)


def test_a_missing_cell_is_named_and_leaves_its_claims_open(tmp_path):
    found = ours(tmp_path, "table1", lambda frame: frame[(frame["setting"] != "without_rnn")].copy())
    assert found.missing == [f"without_rnn {model}" for model in ("ATST-F", "BEATs", "fPaSST", "M2D", "ASiT")]
    rnn = found.claims[2]
    assert (rnn.holds, rnn.missing) == (None, ["without_rnn BEATs", "without_rnn M2D"])
    found = ours(tmp_path, "table1", with_value(float("nan"), setting="proposed", model="BEATs"))
    assert found.missing == ["proposed BEATs"] and found.claims[3].missing == ["proposed BEATs"]
    assert "Step 2 helps BEATs: open" in comparison_text(found)


def test_other_files_are_refused(tmp_path, capsys):
    path = tmp_path / "significance.csv"
    path.write_text("comparison,model\na,b\n")
    with pytest.raises(UserError, match=r"expected table1\.csv, teachers\.csv or table2\.csv"):
        compare_table(path)
    assert main(["compare", str(tmp_path / "none.csv")]) == 1
    assert "no such table; make it with" in capsys.readouterr().err


def test_the_command_prints_the_worst_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(PUBLISHED.parents[1])
    ours(tmp_path, "table1", with_value(30.0, setting="proposed", model="M2D"))
    assert main(["compare", str(tmp_path / "table1.csv")]) == 0
    out = capsys.readouterr().out
    assert "24 within 2 standard deviations of the seeds, 0 above, 1 below" in out
    assert "furthest: proposed M2D 30.0 (paper 46.3, -16.3)" in out
