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
            ["distils without teachers"],
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
