"""What there is of a table that lacks cells, and why they are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished_run import write_evaluations

from framekd import config, tables
from framekd.cli import main
from framekd.graph import Graph
from framekd.pipeline.partial import read_config, write_config, write_partial_tables

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "config" / "published"
SETTINGS = {"models": ["BEATs", "M2D"], "seeds": [1, 2, 3]}


def write_weights(graph: Graph) -> None:
    """An empty file in the place of all weights, older than everything."""
    steps = [graph.checkpoint(step, model) for step in ("step1", "step2") for model in graph.config.models]
    runs = [graph.run(*stage, *member) for stage in graph.evaluations for member in graph.members]
    files = [Path(folder) / "model.safetensors" for folder in (*steps, *runs)]
    for file in (*files, *(Path(graph.results) / f"ensembles/{name}.h5" for name in graph.teacher_settings)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (0, 0))


@pytest.fixture
def graph(tmp_path) -> Graph:
    settings = config.load(SETTINGS | {"results_dir": str(tmp_path / "results")})
    write_evaluations(tmp_path / "results", settings)
    write_weights(graph := Graph(settings))
    return graph


def log(graph: Graph, name: str, text: str) -> str:
    """Write the log of a job that did not end well."""
    path = Path(graph.results) / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def remove_run(graph: Graph, stage: str, setting: str, model: str, seed: int) -> None:
    """Remove the weights and the score of a training, as a failed job leaves them."""
    (Path(graph.run(stage, setting, model, seed)) / "model.safetensors").unlink()
    Path(graph.evaluation(stage, setting, model, seed)).unlink()


def table(graph: Graph, name: str = "table1") -> pd.DataFrame:
    write_partial_tables(graph, published_dir=PUBLISHED)
    frame = pd.read_csv(
        f"{graph.results}/{name}.partial.csv", keep_default_na=False, na_values=[""], dtype={"missing": str}
    )
    keys = [key for key in ("setting", "model", "checkpoint", "mode", "task") if key in frame]
    return frame.fillna({"missing": ""}).set_index(keys)


def test_a_cell_is_the_mean_of_the_seeds_that_are_scored_and_names_the_others(graph):
    remove_run(graph, "students", "proposed", "M2D", 2)
    path = log(graph, "students/proposed/M2D/seed2", "step 3\nframekd: the loss is not finite at step 3\n")
    frame = table(graph)
    cell = frame.loc["proposed", "M2D"]
    scores = [pd.read_csv(graph.evaluation("students", "proposed", "M2D", s))["psds1"][0] for s in (1, 3)]
    assert cell["n"] == 2 and cell["mean"] == pytest.approx(100 * sum(scores) / 2, abs=1e-3)
    assert cell["missing"] == (
        f"student M2D seed 2 of proposed: training failed: the loss is not finite at step 3; see {path}"
    )
    assert cell["published"] == 46.3 and cell["difference"] == pytest.approx(cell["mean"] - 46.3, abs=1e-3)
    average = frame.loc["proposed", "average"]
    assert (average["n"], average["missing"]) == (2, "2 of 3 seeds have every model")
    others = frame.drop(index=[("proposed", "M2D"), ("proposed", "average")])
    assert (others["n"] == 3).all() and (others["missing"] == "").all() and len(others) == 5 * 3 - 2
    page = Path(f"{graph.results}/table1.partial.md").read_text()
    assert ", n = 2 |" in page and f"- {cell['missing']}\n" in page


def test_a_cell_without_any_score_is_called_missing(graph):
    for seed in (1, 2, 3):
        remove_run(graph, "students", "li_et_al", "BEATs", seed)
    cell = table(graph).loc["li_et_al", "BEATs"]
    assert cell["n"] == 0 and pd.isna(cell["mean"]) and cell["missing"].count("not trained yet") == 3
    assert "| missing |" in Path(f"{graph.results}/table1.partial.md").read_text()


def test_a_student_that_waits_for_a_teacher_names_the_teacher(graph):
    remove_run(graph, "teachers", "without_step2", "BEATs", 3)
    Path(f"{graph.results}/ensembles/without_step2.h5").unlink()
    for model, seed in graph.members:
        remove_run(graph, "students", "without_step2", model, seed)
    path = log(
        graph, "teachers/without_step2/BEATs/seed3", "Traceback (most recent call last):\nRuntimeError: no GPU\n"
    )
    why = f"teacher BEATs seed 3 of without_step2: training failed: RuntimeError: no GPU; see {path}"
    cell = table(graph).loc["without_step2", "M2D"]
    assert (
        cell["missing"].split("; student ")[0] == f"student M2D seed 1 of without_step2: waits for the ensemble: {why}"
    )
    teachers = table(graph, "teachers")
    assert teachers.loc["without_step2", "BEATs"]["missing"] == why
    assert teachers.loc["without_step2", "ensemble"]["missing"] == f"ensemble of without_step2: {why}"
    assert (teachers.loc["proposed"]["missing"] == "").all()


def test_a_training_that_waits_for_step_2_says_what_step_2_waits_for(graph):
    own = {"soft_labels": {"logits": None, "index": None, "members": ["M2D"]}, "train": ["BEATs"]}
    search = {"recipe": {"learning_rate": {"BEATs": "search", "M2D": 1e-4}}}
    changed = Graph(config.load(SETTINGS | {"results_dir": graph.results, "step2": own | search}))
    (Path(graph.checkpoint("step2", "BEATs")) / "model.safetensors").unlink()
    remove_run(graph, "students", "proposed", "BEATs", 1)
    remove_run(graph, "teachers", "proposed", "BEATs", 1)
    start = "student BEATs seed 1 of proposed: waits for its checkpoint: waits for "
    path = log(graph, "weak_members/M2D", "framekd: M2D is too large\n")
    found = table(changed).loc["proposed", "BEATs"]["missing"]
    assert found == f"{start}the soft labels of Step 2: job failed: M2D is too large; see {path}"
    Path(f"{graph.results}/ensembles/step2").mkdir(parents=True)
    Path(f"{graph.results}/ensembles/step2/clips.h5").touch()
    path = log(graph, "choose/step2/trained/BEATs", "framekd: no rate trains\n")
    found = table(changed).loc["proposed", "BEATs"]["missing"]
    assert found == f"{start}its learning rate: search failed: no rate trains; see {path}"


def test_a_score_that_is_older_than_its_model_does_not_count(graph):
    weights = Path(graph.run("students", "proposed", "BEATs", 1)) / "model.safetensors"
    later = Path(graph.evaluation("students", "proposed", "BEATs", 1)).stat().st_mtime + 10
    os.utime(weights, (later, later))
    cell = table(graph).loc["proposed", "BEATs"]
    assert (cell["n"], cell["missing"]) == (2, "student BEATs seed 1 of proposed: not scored yet")
    path = log(graph, "evaluation/students/proposed/BEATs/seed1", "loading\n")
    found = table(graph).loc["proposed", "BEATs"]["missing"]
    assert found.endswith(f"scoring failed: it was killed, or is still running; see {path}")


def test_a_job_that_ended_well_did_not_fail(graph):
    remove_run(graph, "students", "proposed", "M2D", 2)
    path = log(graph, "students/proposed/M2D/seed2", "framekd: a note\n")
    Path(path).with_suffix(".json").write_text("{}")
    assert table(graph).loc["proposed", "M2D"]["missing"] == "student M2D seed 2 of proposed: not trained yet"


def test_the_other_cells_of_table_2_stand(graph):
    Path(graph.transfer("MAESTRO", "M2D", "full")).unlink()
    (Path(graph.run("students", "proposed", "M2D", 1)) / "model.safetensors").unlink()
    path = log(graph, "students/proposed/M2D/seed1", "framekd: too large\n")
    frame = table(graph, "table2")
    assert set(frame[frame["n"] == 0].index.get_level_values("model")) == {"M2D", "average"}
    whole = frame.drop(index=["average"])
    average = frame.loc["average", "full", "frozen", "MAESTRO"]
    assert average["missing"] == "average of MAESTRO from full: waits for M2D"
    lost = whole[whole["n"] == 0]
    assert {key[0] for key in lost.index} == {"M2D"} and {key[1] for key in lost.index} == {"full"}
    why = f"waits for its checkpoint: student M2D seed 1 of proposed: training failed: too large; see {path}"
    assert lost.loc["M2D", "full", "frozen", "MAESTRO"]["missing"] == f"MAESTRO from full of M2D: {why}"
    assert len(whole) == 2 * 3 * 2 * 3 and (whole.drop(index=lost.index)["missing"] == "").all()
    complete = tables.table2([graph.transfer("DESED", m, "step1") for m in ("BEATs", "M2D")], published_dir=PUBLISHED)
    for row in complete.to_dict("records"):
        cell = frame.loc[row["model"], row["checkpoint"], row["mode"], row["task"]]
        for name in ("mean", "std", "published", "mean_without_penalty", "std_without_penalty"):
            assert cell[name] == pytest.approx(row[name], abs=1e-3)


def test_before_its_first_score_table_2_names_the_data_that_could_not_be_had(graph):
    shutil.rmtree(Path(graph.results) / "downstream")
    path = log(graph, "data/tasks/MAESTRO", "framekd: piano.tar.gz is broken\n")
    frame = table(graph, "table2")
    assert frame["n"].eq(0).all() and frame["mean"].isna().all()
    waits = f"waits for its data: job failed: piano.tar.gz is broken; see {path}"
    assert waits in frame.loc["M2D", "step1", "frozen", "MAESTRO"]["missing"]
    assert frame.loc["M2D", "step1", "frozen", "DESED"]["missing"].endswith("not run yet")


def test_baselines_of_table_2_are_partial_too(graph):
    block = {"checkpoints": ["untrained", "full"]}
    settings = config.load(SETTINGS | {"results_dir": graph.results, "downstream": block})
    write_evaluations(Path(graph.results), settings)
    path = log(graph, "untrained/BEATs", "framekd: no space\n")
    write_weights(other := Graph(settings))
    weights = Path(other.checkpoint("untrained", "M2D")) / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    os.utime(weights, (0, 0))
    frame = table(other, "table2")
    why = f"DESED from untrained of BEATs: waits for its checkpoint: untrained of BEATs failed: no space; see {path}"
    assert frame.loc["BEATs", "untrained", "frozen", "DESED"]["missing"] == why
    assert frame.loc["M2D", "untrained", "frozen", "DESED"]["n"] == 2
    guess = frame.loc["constant guess", "none", "constant", "DC16-T2"]
    assert guess["n"] == 2 and guess["missing"] == "" and len(frame) == 3 * (3 + 6) + 3


def test_jobs_of_several_trainings_are_found_by_their_log(graph):
    packed = Graph(config.load(SETTINGS | {"results_dir": graph.results, "models_per_job": 2, "seeds_per_job": 2}))
    remove_run(graph, "students", "proposed", "M2D", 3)
    path = log(graph, "students/proposed/pack1/seed3", "framekd: no space\n")
    assert table(packed).loc["proposed", "M2D"]["missing"].endswith(f"training failed: no space; see {path}")


def test_the_configuration_of_a_run_comes_back_without_the_settings_that_it_dropped(tmp_path):
    settings = config.load({"results_dir": str(tmp_path), "settings": {"without_step2": None}})
    write_config(Graph(settings))
    assert read_config(tmp_path) == settings and "without_step2" not in settings.settings
    (tmp_path / "config.json").write_text('{"seeds": []}')
    with pytest.raises(config.UserError, match="not a configuration"):
        read_config(tmp_path)


def test_the_command_writes_the_tables_of_a_folder_of_results(graph, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["tables", graph.results]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    write_config(graph)
    remove_run(graph, "students", "proposed", "M2D", 2)
    assert main(["tables", graph.results]) == 0
    names = [f"{name}.partial.{end}" for name in ("table1", "teachers", "table2") for end in ("csv", "md")]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    for name in ("teachers", "table2"):
        Path(f"{graph.results}/{name}.csv").touch()
    assert main(["tables", graph.results]) == 0
    assert sorted(path.name for path in Path(graph.results).glob("*.partial.*")) == names[:2]


def test_further_subsets_of_the_clips_stand_beside_the_mean(graph):
    for stage, setting in graph.evaluations:
        for member in graph.members:
            path = graph.evaluation(stage, setting, *member)
            frame = pd.read_csv(path)
            frame.assign(psds1_unheard=frame["psds1"] / 2).to_csv(path, index=False)
    remove_run(graph, "students", "proposed", "M2D", 2)
    frame = table(graph)
    for cell in (("proposed", "M2D"), ("proposed", "average"), ("li_et_al", "BEATs")):
        assert frame.loc[cell, "mean_unheard"] == pytest.approx(frame.loc[cell, "mean"] / 2, abs=1e-3)
        assert frame.loc[cell, "std_unheard"] == pytest.approx(frame.loc[cell, "std"] / 2, abs=1e-3)
    assert "; unheard " in Path(f"{graph.results}/table1.partial.md").read_text()
