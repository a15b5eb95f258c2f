"""The configuration: defaults, differences and what a mistake is told."""

from pathlib import Path

import pytest

from framekd.config import Config, UserError, load, load_files, merge
from framekd.generated import conda, render
from framekd.plan import Plan

ROOT = Path(__file__).parents[2]


def test_generated_files_are_what_the_models_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path, text in render().items():
        assert Path(path).read_text() == text, f"{path} is out of date: run `make docs`"


def test_conda_environment_has_exactly_the_pins_of_the_lock():
    import yaml

    lock = (ROOT / "requirements.lock").read_text()
    pins = yaml.safe_load(conda(lock))["dependencies"][-1]["pip"]
    assert pins == lock.split("\n")[:-1]
    assert all("://" not in pin and not pin.startswith("-") for pin in pins)
    versions = dict(pin.split(" ;")[0].split("==") for pin in pins)
    assert versions["torch"].rsplit(".", 1)[0] == versions["torchaudio"].rsplit(".", 1)[0] == "2.11"


def test_the_yaml_of_the_paper_is_the_default():
    assert load_files(ROOT / "config/config.yaml") == Config()


@pytest.mark.parametrize("name", ["demo"])
def test_a_difference_file_states_only_differences(name):
    import yaml

    paper = Config().model_dump(mode="json", by_alias=True)
    stated = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())

    def repeated(ours, theirs, path=()):
        for key, value in ours.items():
            if isinstance(value, dict) and isinstance(theirs, dict) and isinstance(theirs.get(key), dict):
                yield from repeated(value, theirs[key], (*path, key))
            elif isinstance(theirs, dict) and key in theirs and theirs[key] == value:
                yield ".".join((*path, key))

    assert list(repeated(stated, paper)) == []


def test_the_papers_numbers():
    config = Config()
    student, teacher = config.setting("proposed").student.recipe, config.setting("proposed").teacher
    assert (student.epochs, student.distillation_weight, student.warmup_steps) == (120, 0.9, 5000)
    assert (student.steps(), teacher.recipe.steps()) == (46_920, 11_730)
    assert teacher.sequence_model == "bigru" and teacher.recipe.sampler == "balanced"
    assert config.setting("without_step2").start == "step1"
    assert config.setting("li_et_al").teacher is None and config.setting("without_kd").student is None


def test_equal_teachers_are_trained_once():
    plan = Plan(Config())
    assert plan.teacher_settings == ["without_rnn", "proposed", "without_step2"] or set(plan.teacher_settings) == {
        "proposed",
        "without_rnn",
        "without_step2",
    }
    assert plan.scores("without_kd") == "results/evaluation/teachers/without_rnn.csv"
    assert plan.ensemble("without_rnn") == "results/ensembles/without_rnn.h5"
    assert plan.ensemble("li_et_al") is None


def test_students_learn_from_a_ready_made_file_where_one_is_given():
    url = "https://x.org/records/1/files/soft.h5?download=1"
    plan = Plan(load({"student": {"soft_labels": {"url": url, "sha256": "0" * 64}}}))
    assert plan.ensemble("proposed") == plan.ensemble("without_step2") == "data/soft_labels/soft.h5"
    assert plan.soft_labels("students", "proposed") == ["data/soft_labels/soft.h5"]
    assert plan.soft_labels("teachers", "proposed") == [] and plan.ensemble("li_et_al") is None
    assert plan.soft_files == ["soft.h5"] and plan.soft_file("soft.h5") == {"url": url, "sha256": "0" * 64}
    assert plan.student("proposed", "BEATs")["missing_clips"] == "labels"
    assert plan.search("students", "proposed", "BEATs", "0.1")["missing_clips"] == "labels"
    # a setting of its own, without teachers; the others as they were
    own = {"teacher": None, "student": {"soft_labels": {"path": "x.h5"}}}
    plan = Plan(load({"settings": {"proposed": own}}))
    assert plan.ensemble("proposed") == "x.h5" and plan.ensemble("without_rnn") == "results/ensembles/without_rnn.h5"
    assert plan.config.teachers_of("proposed") is None and "proposed" not in plan.teacher_settings
    assert plan.soft_files == [] and plan.student("without_rnn", "BEATs") == Plan(Config()).student("proposed", "BEATs")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student": {"recipe": {"learning_rte": 1}}}, ["student.recipe.learning_rte", "did you mean 'learning_rate'"]),
        ({"seeds": "x"}, ["seeds", "list", "'x'", "seeds: [1, 2, 3]"]),
        ({"student": {"recipe": {"epochs": 0}}}, ["student.recipe.epochs", "greater than or equal to 1", "0"]),
        ({"seeds": [1, 1]}, ["seeds must be different"]),
        (
            {"settings": {"foo": {"student": {"recipe": {"epoch": 1}}}}},
            ["settings.foo.student.recipe.epoch", "'epochs'"],
        ),
        ({"settings": {"li_et_al": {"student": None}}}, ["neither teacher nor student"]),
        (
            {"settings": {"li_et_al": {"student": {"recipe": {"distillation_weight": 0.5}}}}},
            ["settings.li_et_al", "distils without teachers", "soft_labels: {path: …}"],
        ),
        ({"student": {"soft_labels": {}}}, ["student.soft_labels", "either path or url", "{path: soft.h5}"]),
        ({"student": {"soft_labels": {"path": "a.h5", "url": "https://x.org/a.h5"}}}, ["either path or url"]),
        ({"student": {"soft_labels": {"path": "a.h5", "sha256": "0"}}}, ["student.soft_labels", "sha256: null"]),
        ({"student": {"soft_labels": {"url": "https://x.org/"}}}, ["student.soft_labels", "'https://x.org/'"]),
        ({"student": {"soft_labels": {"url": "a.h5"}}}, ["student.soft_labels", "'a.h5'", "no address"]),
        ({"student": {"soft_labels": {"file": "a.h5"}}}, ["student.soft_labels.file", "known keys: path, url, sha256"]),
        (
            {"settings": {"li_et_al": {"student": {"soft_labels": {"path": "a.h5"}}}}},
            ["settings.li_et_al.student", "distillation_weight is 0", "soft_labels: null"],
        ),
        (
            {
                "settings": {
                    "proposed": {"student": {"soft_labels": {"url": "https://x.org/1/a.h5"}}},
                    "without_rnn": {"student": {"soft_labels": {"url": "https://x.org/2/a.h5?download=1"}}},
                }
            },
            ["settings.without_rnn.student.soft_labels", "x.org/1/a.h5 and", "one file, a.h5", "by path"],
        ),
        ({"step2": {"recipe": {"select": "best_loss"}}}, ["step2.recipe", "validation_share: 0.05"]),
        ({"studnt": 1}, ["studnt", "did you mean 'student'"]),
        ({"downstream": {"DC16-T2": {"head": "x"}}}, ["downstream.DC16-T2.head", "'linear' or 'attention'"]),
        ({"teacher": {"recipe": {"augment": {"mixup": 1.5}}}}, ["teacher.recipe.augment.mixup", "1.5"]),
        ({"downstream": {"full_setting": "best"}}, ["downstream.full_setting", "'best'"]),
    ],
)
def test_a_mistake_is_told_with_its_key_and_what_to_write(values, words):
    with pytest.raises(UserError) as caught:
        load(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_learning_rate_per_model_must_name_the_model():
    config = load({"student": {"recipe": {"learning_rate": {"BEATs": 3e-4}}}})
    assert Plan(config).student("proposed", "BEATs")["recipe"]["learning_rate"] == 3e-4
    with pytest.raises(UserError, match="no value for M2D"):
        Plan(config).student("proposed", "M2D")


def test_merge_lays_over_without_touching_its_arguments():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": None}) == {"a": {"b": 1, "c": [3]}, "d": None}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "not YAML"), ("- 1", "expected keys and values"), (None, "no such configuration file")]
)
def test_files_that_are_no_configuration(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        load_files(path)
