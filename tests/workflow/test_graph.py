"""What Snakemake plans, asked of Snakemake itself, in a copy of the repository that has no data."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import h5py
import pytest
from conftest import ROOT, copy_repository, jobs, snakemake

from framekd.layouts import lists


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")])
def test_the_papers_graph_is_planned_without_data(clone, profile):
    planned = jobs(snakemake(clone, "-n", *profile, "results/table1.csv"))
    teachers = sum(n for rule, n in planned.items() if rule.startswith("teacher_seed"))
    students = sum(n for rule, n in planned.items() if rule.startswith("student_seed"))
    # three sets of 15 teachers (without_kd shares those of without_rnn); four sets of 15 students
    assert (teachers, students, planned["ensemble"], planned["acquire"]) == (45, 60, 3, 248)
    assert (planned["step2"], planned["step2_external"], planned["soft_labels"]) == (2, 3, 2)
    assert "untrained" not in planned
    # each is scored by itself: 60 students and, for the row without distillation, 15 teachers
    assert [planned[f"evaluate_seed{seed}"] for seed in (1, 2, 3)] == [25, 25, 25]
    assert "evaluate_ensemble" not in planned


def test_published_models_need_the_evaluation_clips_alone(clone, tmp_path):
    (tmp_path / "theirs.csv").write_text("Yabcdefghijk,10.0\n")
    path = tmp_path / "with_list.yaml"
    path.write_text(f"published: {{clips: {tmp_path}/theirs.csv}}")
    run = snakemake(clone, "-n", "results/published.csv", "--configfile", str(path))
    assert jobs(run) == {
        **{"labels": 1, "clips": 1, "acquire": 8, "gate": 1},
        **{"step3_published": 5, "evaluate_published": 5, "table_published": 1},
    }
    assert "data/store/eval/0007.h5" in run.stdout and run.stdout.count(f"{tmp_path}/theirs.csv") >= 5
    assert not any(f"data/store/{group}" in run.stdout for group in ("strong", "weak"))


def test_the_demo_says_that_it_has_no_published_models(clone):
    run = snakemake(clone, "-n", "--configfile", "config/demo.yaml", "--", "results/demo/published.csv")
    said = run.stdout + run.stderr
    assert run.returncode != 0 and "Traceback" not in said
    assert "of which the miniature has none" in said


def test_own_recordings_are_stored_once_and_join_the_training_clips(clone, tmp_path):
    (tmp_path / "own 1.wav").touch()
    (tmp_path / "own.tsv").write_text("filename\tonset\toffset\tevent_label\nown 1.wav\t0\t1\tMine\n")
    path = tmp_path / "own.yaml"
    path.write_text(f"audioset: {{extra: {{labels: {tmp_path}/own.tsv, audio: {tmp_path}}}}}")
    run = snakemake(clone, "-n", "results/table1.csv", "--configfile", str(path))
    planned = jobs(run)
    assert (planned["extra"], planned["acquire"]) == (1, 248) and f"{tmp_path}/own 1.wav" in run.stdout
    assert run.stdout.count("data/extra/audio.h5") > run.stdout.count("data/labels/eval_segments.csv")


def downstream_data(folder):
    """A configuration file whose downstream folders exist: without data, Table II and `all` are refused."""
    tasks = {}
    for task in ("DESED", "DC16-T2", "MAESTRO"):
        tasks[task] = {"data": str(folder / task)}
        for path in map(Path, lists(task, folder / task)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    path = folder / "downstream.yaml"
    path.write_text(json.dumps({"downstream": tasks}))
    return path


def test_the_data_of_table_2_are_jobs_of_their_own_which_its_tasks_wait_for(clone, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("downstream: {MAESTRO: {data: piano}, fetch: {MAESTRO: null}}")
    for name in lists("MAESTRO", clone / "piano"):
        (clone / "piano").mkdir(exist_ok=True)
        Path(name).touch()
    planned = jobs(run := snakemake(clone, "-n", "results/table2.csv", "--configfile", str(path)))
    assert (planned["task_data"], planned["downstream"]) == (3, 45)
    assert not [rule for rule in planned if rule.startswith(("student_seed2", "student_seed3", "evaluate"))]
    inputs = {out: set(text.split(", ")) for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    taken = {f"piano/{name}" for name in ("labelvocabulary.csv", "fold00.json", "fold01.json", "fold02.json")}
    assert inputs["data/tasks/MAESTRO/state.json"] == taken
    for task in ("DESED", "DC16-T2", "MAESTRO"):
        assert f"data/tasks/{task}/state.json" in inputs[f"results/downstream/{task}/BEATs/full.csv"]
    shutil.rmtree(clone / "piano")


def documented_jobs() -> dict[str, dict[str, int]]:
    """The table of docs/reproduce.md: difference of the configuration → rule without its seed → jobs."""
    table = (ROOT / "docs/reproduce.md").read_text().split("## How many jobs\n")[1].split("\n## ")[0]
    head, _, *lines = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    counts = [(line[0].strip("`"), list(map(int, line[1:]))) for line in lines]
    return {name.strip("`"): {rule: n[i] for rule, n in counts if n[i]} for i, name in enumerate(head[1:])}


@pytest.mark.parametrize("difference", list(documented_jobs()))
def test_the_documented_numbers_of_jobs_are_planned(clone, tmp_path, difference):
    path = tmp_path / "difference.yaml"
    path.write_text(difference if ":" in difference else "{}")
    planned = jobs(run := snakemake(clone, "-n", "results/table1.csv", "--configfile", str(path)))
    found: dict[str, int] = {"total": sum(planned.values())}
    for rule, n in planned.items():
        name = rule.split("_seed")[0]
        found[name] = found.get(name, 0) + n
    assert found == documented_jobs()[difference]
    assert ("data/store/weak" in run.stdout) == ("step2" in planned)


def test_cluster_jobs_ask_for_what_the_configuration_says(clone):
    text = snakemake(
        clone, "-n", "--cores", "16", "--profile", "slurm", "results/teachers/proposed/BEATs/seed2/model.safetensors"
    ).stdout
    job = text.split("rule teacher_seed2:")[1].split("\n[")[0]
    assert re.search(r"threads: 12\n", job) and "gpu=1" in job and "mem_mb=64000" in job and "runtime=1440" in job


def test_several_gpus_are_asked_for_on_one_node(clone, tmp_path):
    path = tmp_path / "gpus.yaml"
    path.write_text("resources: {teacher: {gpu: 4}}")
    target = "results/teachers/proposed/BEATs/seed2/model.safetensors"
    text = snakemake(clone, "-n", "--cores", "16", "--profile", "slurm", target, "--configfile", str(path)).stdout
    job = text.split("rule teacher_seed2:")[1].split("\n[")[0]
    assert "gpu=4" in job and "nodes=1" in job
    assert "nodes" not in text.split("rule teacher_seed2:")[0]


def test_no_script_hides_a_module():
    """The folder of a script comes first on its import path: coverage.py would be what numba imports as `coverage`."""
    names = [path.stem for path in (ROOT / "scripts").glob("*.py")]
    found = {name: importlib.util.find_spec(name) for name in names}
    assert len(names) > 10 and [name for name, spec in found.items() if spec and spec.loader] == []


def test_everything_is_planned_for_the_demo(clone):
    planned = jobs(snakemake(clone, "-n", "--configfile", "config/demo.yaml"))
    packs = [f"pack{i}" for i in (1, 2)]  # three models and two
    assert [planned[f"teacher_{pack}_seed1_2_3"] for pack in packs] == [3, 3]
    assert [planned[f"student_{pack}_seed1_2_3"] for pack in packs] == [4, 4]
    assert [planned[f"downstream_{pack}"] for pack in packs] == [12, 12]  # from four checkpoints
    assert [planned[f"untrained_{pack}"] for pack in packs] == [1, 1]
    assert [planned[f"step2_{pack}"] for pack in packs] == [1, 1] and planned["report"] == 1
    assert planned["weak_member_pack1"] == planned["weak_ensemble"] == 1 and "soft_labels" not in planned
    assert [planned[f"evaluate_{pack}_seed1_2_3"] for pack in packs] == [7, 7] and planned["evaluate_ensemble"] == 3


def test_what_a_job_reads_is_declared(clone):
    """Shards, labels and checkpoints with their specifications are inputs of the jobs that open them."""
    run = snakemake(clone, "-n", "--configfile", "config/demo.yaml")
    assert run.returncode == 0, run.stderr
    inputs = {out: set(text.split(", ")) for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    data, out = "results/demo/data", "results/demo"
    shards = {f"{data}/store/strong/{i:04d}.h5" for i in range(2)} | {f"{data}/coverage/strong.tsv"}
    evaluation = {f"{data}/store/eval/0000.h5", f"{data}/coverage/eval.tsv"}
    weak = {f"{data}/store/weak/0000.h5", f"{data}/coverage/weak.tsv"}
    groups = shards | evaluation | weak
    labels = {f"{data}/labels/{name}" for name in ("audioset_train_strong.tsv", "mid_to_display_name.tsv")}
    teacher = inputs[f"{out}/teachers/proposed/ATST-F/seed1/model.safetensors"]
    step2 = {f"{out}/checkpoints/step2/BEATs/{name}" for name in ("model.safetensors", "spec.json")}
    assert (
        teacher >= labels | step2
        and teacher & groups == shards
        and f"{data}/labels/audioset_eval_strong.tsv" not in teacher
    )
    scored = inputs[f"{out}/evaluation/students/proposed/ATST-F/seed1.csv"]
    assert scored >= labels | {f"{data}/labels/audioset_eval_strong.tsv"} and scored & groups == evaluation
    assert scored >= {f"{data}/miniature/audioset/summary.json"}
    assert inputs[f"{out}/ensembles/proposed.h5"] & groups == shards
    assert inputs[f"{out}/checkpoints/step2/ATST-F/model.safetensors"] >= groups
    assert inputs[f"{out}/evaluation/step2/ATST-F.csv"] & groups == evaluation | weak
    report = inputs[f"{out}/report.html"]
    assert report >= {
        *(f"{data}/coverage/{group}.tsv" for group in ("strong", "eval", "weak")),
        f"{out}/table2.csv",
        f"{out}/evaluation/teachers/proposed/BEATs/seed2.per_class.csv",
        f"{out}/students/li_et_al/M2D/seed3/history.jsonl",
        f"{out}/checkpoints/step2/ASiT/spec.json",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("--configfile", "config/demo.yaml", "tests/workflow/tiny.yaml"),
        ("--config", "seeds=[1]", "--configfile", "config/demo.yaml"),
        ("--config", "student={recipe: {epochs: 3, clip_gradient: 0.5}}", "--configfile", "config/demo.yaml"),
    ],
)
def test_configurations_can_be_combined(clone, arguments):
    run = snakemake(clone, "-n", "all", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    seeds = {"tiny": "seed1_2", "[1]": "seed1"}
    expected = next((seed for key, seed in seeds.items() if key in " ".join(arguments)), "seed1_2_3")
    assert f"student_pack1_{expected}" in jobs(run)


@pytest.mark.parametrize(
    ("text", "targets", "words"),
    [
        (
            "seeds: [1]\nstudent: {recipe: {epohcs: 3}}",
            ["results/table1.csv"],
            ["line 2: student.recipe.epohcs", "'epochs'"],
        ),
        ("seeds: [1]\nmodels: [M2D]\nseeds: [2]", ["results/table1.csv"], ["line 3: seeds is stated twice"]),
        (
            "student:\n  soft_labels: {path: gone.h5}",
            ["results/table1.csv"],
            ["line 2: student.soft_labels", "gone.h5"],
        ),
        (
            "downstream:\n  fetch: {DESED: null}\n  DESED:\n    data: gone",
            [],
            ["line 4: downstream.DESED.data: gone", "results/table1.csv"],
        ),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_planned(clone, tmp_path, text, targets, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    run = snakemake(clone, "-n", *targets, "--configfile", str(path))
    said = run.stdout + run.stderr
    assert run.returncode == 1 and "Traceback" not in said and "Job stats" not in said
    assert all(word in said for word in [f"{path}, ", *words]), said


def test_students_of_a_ready_made_file_need_no_teachers(clone, tmp_path):
    path = tmp_path / "soft.yaml"
    (tmp_path / "x.h5").touch()
    own = f"{{teacher: null, student: {{soft_labels: {{path: {tmp_path}/x.h5}}}}}}"
    path.write_text(f"settings: {{proposed: {own}}}")
    planned = jobs(run := snakemake(clone, "-n", "--configfile", str(path), str(downstream_data(tmp_path))))
    inputs = {out: text for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    student = inputs["results/students/proposed/M2D/seed2/model.safetensors"]
    assert f"{tmp_path}/x.h5" in student and "results/ensembles" not in student
    assert not [out for out in inputs if "/proposed" in out and ("teachers/" in out or "ensembles/" in out)]
    assert (planned["ensemble"], planned["evaluate_ensemble"], planned["evaluate_seed1"]) == (2, 2, 30)
    assert planned["teachers"] == planned["significance"] == planned["report"] == 1
    assert planned["soft_labels"] == 2  # those of Step 2


def test_a_ready_made_file_is_fetched_once_and_a_run_can_be_without_any_teacher(clone, tmp_path):
    path = tmp_path / "soft.yaml"
    none = "{teacher: null}"
    path.write_text(
        "student: {soft_labels: {url: 'https://example.org/files/a+b.h5?download=1'}}\n"
        f"settings: {{proposed: {none}, without_step2: {none}, without_rnn: null, without_kd: null}}\n"
    )
    planned = jobs(run := snakemake(clone, "-n", "--configfile", str(path), str(downstream_data(tmp_path))))
    students = sum(n for rule, n in planned.items() if rule.startswith("student_seed"))
    assert (planned["soft_labels"], students, planned["evaluate_seed1"]) == (3, 45, 15)
    assert not [rule for rule in planned if "teacher" in rule or "ensemble" in rule]
    assert planned["table1"] == planned["significance"] == planned["report"] == 1
    inputs = {out: text for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    assert "data/soft_labels/a+b.h5" in inputs["results/students/without_step2/M2D/seed2/model.safetensors"]
    assert "soft_labels" not in inputs["results/students/li_et_al/M2D/seed2/model.safetensors"]


def test_a_ready_made_file_is_fetched_by_its_rule(tmp_path):
    folder, source = copy_repository(tmp_path / "framekd"), tmp_path / "soft+1.h5"
    with h5py.File(source, "w") as file:
        file["filenames"] = [b"Yabcdefghijk.mp3"]
    path = tmp_path / "soft.yaml"
    path.write_text(f"student: {{soft_labels: {{url: '{source.as_uri()}'}}}}")
    run = snakemake(folder, "--cores", "1", "data/soft_labels/soft+1.h5", "--configfile", str(path))
    log = folder / "results/logs/soft_labels/soft+1.h5.log"
    assert run.returncode == 0, run.stderr + log.read_text()
    fetched = folder / "data/soft_labels/soft+1.h5"
    assert fetched.read_bytes() == source.read_bytes() and "soft+1.h5" in log.read_text()
    assert fetched.with_name("soft+1.h5.sha256").is_file()


@pytest.mark.parametrize(
    ("step2", "files", "fetched"),
    [
        ("{}", ["data/soft_labels/passt_enemble_logits_mAP_495.npy", "data/soft_labels/fname_to_index.pkl"], 2),
        ("{soft_labels: {logits: {path: x.h5, url: null}, index: null}}", ["x.h5"], 0),
        ("{recipe: {distillation_weight: 0.0}}", [], 0),
        ("{soft_labels: null, recipe: {distillation_weight: 0.0}}", [], 0),
    ],
)
def test_step_2_reads_the_soft_labels_that_it_is_given(clone, tmp_path, step2, files, fetched):
    path = tmp_path / "soft.yaml"
    path.write_text(f"step2: {step2.replace('x.h5', str(tmp_path / 'x.h5'))}")
    (tmp_path / "x.h5").touch()
    target = "results/checkpoints/step2/ASiT/model.safetensors"
    planned = jobs(run := snakemake(clone, "-n", target, "--configfile", str(path)))
    inputs = {out: set(text.split(", ")) for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    assert planned.get("soft_labels", 0) == fetched
    assert inputs[target] >= {str(tmp_path / f) if f == "x.h5" else f for f in files}
    assert fetched or files or not [f for f in inputs[target] if "soft" in f]


def test_learning_rates_are_searched_before_they_are_used_and_only_where_asked_for(clone, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text(
        "teacher: {recipe: {learning_rate: search}}\n"
        "student: {recipe: {learning_rate: {BEATs: search, ATST-F: 1.0e-4, fPaSST: 1.0e-4, M2D: 1.0e-4, ASiT: 1.0e-4}},"
        " search: {grid: [1.0e-4, 3.0e-4]}}\n"
    )
    planned = jobs(run := snakemake(clone, "-n", "results/table1.csv", "--configfile", str(path)))
    # three sets of teachers, five models, six rates; three settings with students of the paper's recipe, one model
    assert (planned["search_teachers"], planned["choose_teachers"]) == (90, 15)
    assert (planned["search_students"], planned["choose_students"]) == (6, 3)
    without = jobs(snakemake(clone, "-n", "results/table1.csv"))
    assert not [rule for rule in without if "search" in rule or "choose" in rule]
    assert without == {rule: n for rule, n in planned.items() if "search" not in rule and "choose" not in rule}

    inputs = {out: text for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}

    def needs(weights):
        return inputs[f"results/{weights}/model.safetensors"]

    assert "results/search/students/proposed/BEATs.json" in needs("students/proposed/BEATs/seed3")
    assert "results/search" not in needs("students/proposed/M2D/seed3") + needs("students/li_et_al/BEATs/seed3")
    assert "results/search/teachers/without_step2/M2D.json" in needs("teachers/without_step2/M2D/seed1")
    # a student's rates are tried with the ensemble, and each with what the training itself would be given
    tried = inputs["results/search/students/proposed/BEATs/0.0003/result.json"]
    assert "results/ensembles/proposed.h5" in tried and "results/checkpoints/step2/BEATs" in tried
    assert "data/coverage/strong.tsv" in tried and "data/store/eval" not in tried + needs(
        "students/proposed/BEATs/seed3"
    )


def test_step_2_and_the_members_of_its_soft_labels_search_only_where_asked_for(clone, tmp_path):
    path = tmp_path / "search.yaml"
    search = "recipe: {learning_rate: search}, search: {grid: [1.0e-5, 2.0e-5, 3.0e-5]}"
    path.write_text(f"step2: {{{search}, soft_labels: {{logits: null, index: null, members: [M2D]}}}}")
    planned = jobs(run := snakemake(clone, "-n", "results/table1.csv", "--configfile", str(path)))
    # two models of Step 2 and one member, three rates
    assert (planned["search_step2"], planned["choose_step2"], planned["weak_member"]) == (9, 3, 1)
    assert not [rule for rule in planned if rule.startswith(("search_t", "search_students"))]
    inputs = {out: set(text.split(", ")) for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    assert "results/search/step2/trained/ASiT.json" in inputs["results/checkpoints/step2/ASiT/model.safetensors"]
    assert "results/search/step2/members/M2D.json" in inputs["results/checkpoints/weak_members/M2D/model.safetensors"]
    step1 = {"results/checkpoints/step1/ASiT/model.safetensors", "data/store/weak/0000.h5", "data/coverage/weak.tsv"}
    tried = inputs["results/search/step2/trained/ASiT/2e-05/result.json"]
    assert tried >= step1 | {"results/ensembles/step2/clips.h5"}
    assert "results/ensembles/step2/clips.h5" not in inputs["results/search/step2/members/M2D/2e-05/result.json"]


def test_a_search_that_evaluation_clips_judge_reads_them_and_waits_for_them(clone, tmp_path):
    path = tmp_path / "search.yaml"
    path.write_text("teacher: {recipe: {learning_rate: search}, search: {grid: [1.0e-4], judged_on: eval}}")
    target = "results/search/teachers/proposed/M2D/0.0001/result.json"
    run = snakemake(clone, "-n", target, "--configfile", str(path))
    assert run.returncode == 0, run.stderr
    inputs = {out: set(text.split(", ")) for text, out in re.findall(r"input: (.*)\n    output: ([^,\s]+)", run.stdout)}
    groups = ("strong", "eval")
    wanted = {*(f"data/coverage/{g}.tsv" for g in groups), *(f"data/store/{g}/0000.h5" for g in groups)}
    assert inputs[target] >= wanted | {"data/labels/audioset_eval_strong.tsv"}
    assert not [out for out in inputs if "weak" in out]
