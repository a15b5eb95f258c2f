"""Mistakes are found before a run: by one function, which Snakemake and `framekd doctor` share, with file and line."""

from pathlib import Path

import pytest

from framekd.checks import checked, problems
from framekd.cli import main
from framekd.config import SIZES, UserError, load, read_sources, read_yaml
from framekd.models.build import ENCODERS

ROOT = Path(__file__).parents[2]
TABLE1 = ["results/table1.csv"]  # needs no downstream data

# The YAML of a mistake; the line that is named; and words of the sentence: what is wrong, and what to write.
MISTAKES = [
    ("models: []", 1, ["models", "at least one", "write models: [ATST-F"]),
    ("seeds: [1]\nmodels: [BEATs, BEATs]", 2, ["models must be different"]),
    ("models: [BEATS]", 1, ["no model called 'BEATS'", "did you mean 'BEATs'?"]),
    ("sizes: {BERT: {width: 96}}", 1, ["no model called 'BERT'", "the models are ATST-F"]),
    ("sizes:\n  BEATs: {stem: [1, 2, 4]}", 2, ["BEATs has no size called 'stem'", "its sizes are"]),
    ("sizes:\n  M2D:\n    heads: 7", 2, ["heads (7) must divide width (768)", "change one"]),
    ("sizes: {M2D: {depth: -1}}", 1, ["depth must be a positive whole number, not -1"]),
    ("resources: {students: {gpu: 2}}", 1, ["'students' is no stage", "did you mean 'student'?"]),
    (
        "student:\n  recipe:\n    learning_rate: 1.0e+30",
        3,
        ["learning_rate", "up to 10", "write learning_rate: 1.0e-4"],
    ),
    ("teacher: {recipe: {epochs: 1.0e+20}}", 1, ["teacher.recipe.epochs", "1e+20", "write, for instance"]),
    ("teacher: {recipe: {epochs: 100001}}", 1, ["teacher.recipe.epochs", "less than or equal to 100000"]),
    ("teacher: {recipe: {epochs: 3}}", 1, ["5000 steps of warm-up", "1173 steps of the training", "warmup_steps: 117"]),
    ("recipe:\n  warmup_steps: 1000000", 2, ["1000000 steps of warm-up", "unfinished_warmup: true"]),
    ("teacher: {recipe: {patience: 3}}", 1, ["patience needs validation clips; write validation_share: 0.05"]),
    (
        "student: {recipe: {patience: 3, validation_share: 0.1, validate_epochs: 500}}",
        1,
        ["needs a validation within 120 epochs; write validate_epochs: 1"],
    ),
    ("seeds: [-1]", 1, ["seeds.0", "greater than or equal to 0", "-1"]),
    ("step2: {seed: -1}", 1, ["step2.seed", "greater than or equal to 0"]),
    ("downstream: {DESED: {seeds: [2, -1]}}", 1, ["downstream.DESED.seeds.1", "greater than or equal to 0"]),
    ("seeds: [1]\nmodels: [M2D]\nseeds: [2]", 3, ["seeds is stated twice, first in line 1", "remove one"]),
    ("student:\n  recipe: {epochs: 1}\n  recipe: {epochs: 2}", 3, ["student.recipe is stated twice", "line 2"]),
    ("settings:\n  a/b: {}", 2, ["'a/b' cannot be a folder", "such as 'a_b'"]),
    ("settings: {'..': {}}", 1, ["'..' cannot be a folder"]),
    ("audioset: {download: {url: 'https://x.org/watch'}}", 1, ["download.url", "must hold {ytid}", "watch?v={ytid}"]),
    ("audioset: {download: {url: 'https://x.org/{ytid}/{0}'}}", 1, ["download.url", "no other braces"]),
    ("audioset: {weak: false}\nstep2: {train: [BEATs]}", 2, ["Step 2 trains BEATs", "write step2: {train: []}"]),
    ("audioset: {weak: false}\nstep2: {train: [fPaSST, ASiT]}", 2, ["Step 2 trains fPaSST", "audioset.weak is false"]),
    (
        "audioset:\n  labels_dir: EMPTY",
        2,
        ["labels_dir", "has no balanced_train_segments.csv and 6 other", "labels_dir: null"],
    ),
    ("models: [tiny]\nstep2: {train: [tiny]}", 1, ["step1.external", "no address for tiny", "step1: {source: seed}"]),
    ("audioset: {labels_dir: nowhere}", 1, ["nowhere does not exist", "labels_dir: null"]),
    ("audioset: {folders: [nowhere]}", 1, ["audioset.folders: nowhere does not exist"]),
    ("student: {soft_labels: {path: gone.h5}}", 1, ["student.soft_labels.path: gone.h5 does not exist", "path: null"]),
    (
        "step2:\n  soft_labels:\n    logits: {path: gone.npy, url: null}",
        3,
        ["step2.soft_labels.logits.path: gone.npy does not exist"],
    ),
    ("student: {recipe: {learning_rate: {BEATs: 1.0e-4}}}", 1, ["has no value for ATST-F", "{ATST-F: 1.0e-4}"]),
    ("models: [M2D]\nstudent: {recipe: {learning_rate: {M2D: 1.0e-4, BERT: 1.0e-4}}}", 2, ["no model called 'BERT'"]),
    ("results_dir: FILE/results", 1, ["results_dir", "is a file", "name a folder that you may write to"]),
    ("audioset: {download: {proxy: 'http://me:secret@proxy:3128'}}", 1, ["in the environment", "write proxy: null"]),
    ("evaluation: {median_seconds: .nan}", 1, ["evaluation.median_seconds", "finite number"]),
    ("seeds: [1", 1, ["not YAML"]),
    ("a: {b: c}}", 1, ["not YAML"]),
    ("seeds: 2024-99-99", None, ["not YAML", "month must be in 1..12"]),
    ("", None, ["the file is empty"]),
    ("# nothing\n", None, ["the file is empty"]),
    ("- 1", None, ["expected keys and values"]),
    (
        "a: &a [1]\nb: &b [" + "*a, " * 50 + "]\nc: &c [" + "*b, " * 50 + "]\nd: [" + "*c, " * 50 + "]",
        None,
        ["aliases"],
    ),
    ("a: &a {b: *a}", 1, ["contains itself"]),
    ("[" * 500, None, ["nested too deeply"]),
]


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "empty").mkdir(exist_ok=True)
    (tmp_path / "file").touch()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("EMPTY", str(tmp_path / "empty")).replace("FILE", str(tmp_path / "file")))
    return path


@pytest.mark.parametrize(("text", "line", "words"), MISTAKES)
def test_a_mistake_is_one_sentence_with_file_and_line_for_snakemake_and_doctor(text, line, words, tmp_path, capsys):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        checked([ROOT / "config/config.yaml", path], targets=TABLE1)
    said = str(caught.value)
    place = f"{path}, line {line}: " if line else f"{path}: "
    first = said.splitlines()[0]
    assert first.startswith(place), said
    assert all(word in said for word in words) and len(first) < 400, said
    assert "secret" not in said
    assert main(["doctor", "--configfile", str(path), "--", *TABLE1]) == 1
    assert f"- {first}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.yaml", "binary.yaml", "large.yaml"])
def test_what_is_no_configuration_file_is_one_sentence(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "binary.yaml":
        path.write_bytes(bytes(range(128, 256)))
    if name == "large.yaml":
        with path.open("wb") as file:
            file.truncate(10 << 30)  # read as text, it would take all memory
    assert main(["doctor", "--configfile", str(path)]) == 1
    said = capsys.readouterr().out
    assert f"- {path}: " in said and said.count("\n") == 2 and "Traceback" not in said


@pytest.mark.parametrize("files", [[], ["demo"], ["released"], ["demo", "../tests/workflow/tiny"]])
def test_the_configurations_of_the_repository_are_accepted(files):
    checked([ROOT / f"config/{name}.yaml" for name in ["config", *files]], targets=TABLE1)


def test_downstream_folders_are_looked_at_where_table_2_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load({"downstream": {"MAESTRO": {"data": "piano"}, "fetch": {"MAESTRO": None}}})
    (tmp_path / "piano").mkdir()
    _, nowhere = read_sources([])

    def keys(*words):
        return [problem.key for problem in problems(config, nowhere, targets=words)]

    assert keys() == keys("all") == keys("-n", "results/table2.csv") == keys("report") == ["downstream.MAESTRO.data"]
    assert keys("-n", "--cores", "2", "results/table1.csv") == keys("table1") == keys("data/coverage/strong.tsv") == []
    assert keys("results/table1.csv", "results/report.html") == ["downstream.MAESTRO.data"]
    assert (
        problems(
            load(
                {
                    "miniature": {},
                    "downstream": {t: {"data": f"data/miniature/{t}"} for t in ("DESED", "DC16-T2", "MAESTRO")},
                }
            ),
            nowhere,
        )
        == []
    )


def test_sources_that_are_not_needed_any_more_may_be_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load({"audioset": {"weak": False, "folders": ["disk"], "download": {"shards": {"strong": 1, "eval": 1}}}})
    _, nowhere = read_sources([])
    assert [p.key for p in problems(config, nowhere, targets=TABLE1)] == ["audioset.folders"]
    for group in ("strong", "eval"):
        (tmp_path / "data/store" / group).mkdir(parents=True)
        (tmp_path / "data/store" / group / "0000.h5").touch()
    assert problems(config, nowhere, targets=TABLE1) == []


def test_every_architecture_has_sizes():
    assert ENCODERS.keys() == SIZES.keys()


def test_a_place_is_that_of_the_key_or_of_what_it_comes_from(tmp_path):
    (tmp_path / "a.yaml").write_text("recipe:\n  epochs: 3\nsettings:\n  mine:\n    student: {recipe: {ema: 0.9}}\n")
    (tmp_path / "b.yaml").write_text("# later\nrecipe: {epochs: 4}\n")
    values, sources = read_sources([tmp_path / "a.yaml", tmp_path / "b.yaml"], {"seeds": [3]})
    assert values["recipe"] == {"epochs": 4} and values["seeds"] == [3]
    assert sources.place("student.recipe.epochs") == f"{tmp_path}/b.yaml, line 2"
    assert sources.place("settings.mine.student.recipe.ema") == f"{tmp_path}/a.yaml, line 5"
    assert sources.place("settings.mine.teacher") == f"{tmp_path}/a.yaml, line 4"
    assert sources.place("seeds") == "--config"


def test_merge_keys_and_aliases_of_ordinary_size_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert read_yaml(path)[0] == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}
