"""The configuration: defaults, differences and the message of a mistake."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from framekd.config import GROUPS, Config, UserError, difference, identity, load, load_files, merge
from framekd.generated import conda, render
from framekd.graph import Pack
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

    stated = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    common = {key: value for key, value in stated.items() if key == "recipe"}
    paper = load(common).model_dump(mode="json", by_alias=True)

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
    assert set(plan.teacher_settings) == {"proposed", "without_rnn", "without_step2"}
    assert plan.scores("without_kd")[3] == "results/evaluation/teachers/without_rnn/BEATs/seed1.csv"
    assert plan.soft_labels("students", "without_rnn") == ["results/ensembles/without_rnn.h5"]
    assert plan.soft_labels("students", "li_et_al") == []


def train_job(plan, setting, model="BEATs"):
    return plan.train_job(SimpleNamespace(setting=setting, model=model), "students", Pack("", None, (1,)))


def test_students_learn_from_a_ready_made_file_where_one_is_given():
    url = "https://x.org/records/1/files/soft.h5?download=1"
    plan = Plan(load({"student": {"soft_labels": {"url": url, "sha256": "0" * 64}}}))
    assert plan.soft_labels("students", "proposed") == ["data/soft_labels/soft.h5"]
    assert plan.soft_labels("students", "without_step2") == ["data/soft_labels/soft.h5"]
    assert plan.soft_labels("teachers", "proposed") == [] == plan.soft_labels("students", "li_et_al")
    job = plan.soft_labels_job(SimpleNamespace(file="soft.h5"))
    assert (job.url, job.sha256) == (url, "0" * 64)
    assert train_job(plan, "proposed").missing_clips == "labels"
    wildcards = SimpleNamespace(setting="proposed", model="BEATs", rate="0.1")
    assert plan.search_job(wildcards, "students").train.missing_clips == "labels"
    # a setting of its own, without teachers; the others as they were
    own = {"teacher": None, "student": {"soft_labels": {"path": "x.h5"}}}
    plan = Plan(load({"settings": {"proposed": own}}))
    assert plan.soft_labels("students", "proposed") == ["x.h5"]
    assert plan.soft_labels("students", "without_rnn") == ["results/ensembles/without_rnn.h5"]
    assert plan.teachers["proposed"] is None and "proposed" not in plan.teacher_settings
    assert not [name for name in plan.config.soft_files() if name.endswith(".h5")]
    assert train_job(plan, "without_rnn") == train_job(Plan(Config()), "without_rnn")


def test_the_block_recipe_reaches_every_training_in_which_a_key_acts():
    config = load(
        {"recipe": {"batch_size": 128, "clip_gradient": 1.0, "ema": 0.99}, "student": {"recipe": {"ema": None}}}
    )
    recipes = [config.step2.recipe, config.teacher.recipe, config.student.recipe, config.downstream.DESED.frozen]
    assert {recipe.batch_size for recipe in recipes} == {128} and {recipe.clip_gradient for recipe in recipes} == {1.0}
    assert (config.step2.recipe.ema, config.teacher.recipe.ema, config.student.recipe.ema) == (0.99, 0.99, None)
    assert (
        config.step2.recipe.epochs == 130
        and config.step2.recipe.distillation_weight == 0.9
        and config.teacher.recipe.augment.wavmix == 1.0
    )
    assert config.setting("li_et_al").student.recipe.clip_gradient == 3.0
    assert not hasattr(config.downstream.DESED.frozen, "ema")


def test_whatever_a_recipe_holds_can_be_given_per_model():
    config = load({"teacher": {"recipe": {"per_model": {"M2D": {"epochs": 7, "augment": {"mixup": 0.9}}}}}})
    teacher = config.teacher.recipe
    assert (teacher.of("M2D").epochs, teacher.of("BEATs").epochs) == (7, 30)
    assert teacher.of("M2D").augment.mixup == 0.9 and teacher.of("M2D").augment.wavmix == 1.0
    # Li et al.'s script for ATST-Frame: another rate, which decays from layer to layer
    li = Config().setting("li_et_al").student.recipe
    assert (li.of("ATST-F").learning_rate, li.of("ATST-F").layer_decay) == (1e-3, 0.75)
    assert (li.of("BEATs").learning_rate, li.of("BEATs").layer_decay) == (0.5, 1.0)
    plain = load({"settings": {"li_et_al": {"student": {"recipe": {"per_model": {"ATST-F": None}}}}}})
    assert plain.setting("li_et_al").student.recipe.of("ATST-F").learning_rate == 0.5


def test_inert_keys_are_no_part_of_an_identity():
    other = {
        "tracking": {"tensorboard": True},
        "resources": {"teacher": {"threads": 3}},
        "seeds_per_job": 2,
        "audioset": {"download": {"workers": 9, "retries": 1, "pause_seconds": 0}},
    }
    assert identity(load(other)) == identity(Config()) and load(other) != Config()
    assert identity(load({"audioset": {"download": {"sections": False}}})) != identity(Config())


@pytest.mark.parametrize("shards", [3, {"strong": 0}, {"weak": 2001}, {"eval": 2.5}, {"strogn": 2}, None])
def test_shards_are_a_number_per_group(shards):
    line = r"write shards: \{strong: 40, eval: 8, weak: 200\}"
    with pytest.raises(UserError, match=rf"^configuration: audioset\.download\.shards: expected a number .*{line}$"):
        load({"audioset": {"download": {"shards": shards}}})


def test_without_audioset_weak_every_model_takes_a_published_step2_checkpoint():
    assert Config().step2_trained == ["fPaSST", "ASiT"]
    assert load({"audioset": {"weak": False}}).step2_trained == []
    with pytest.raises(UserError, match=r"tiny is not in step2.external, and audioset.weak is false"):
        load({"audioset": {"weak": False}, "models": ["tiny"], "step2": {"train": ["tiny"]}})


def test_each_job_reads_the_clips_that_it_needs_and_waits_for_them():
    plan = Plan(load({"audioset": {"download": {"shards": {"strong": 1, "eval": 2, "weak": 3}}}}))
    strong, eval0, eval1 = (f"data/store/{name}.h5" for name in ("strong/0000", "eval/0000", "eval/0001"))
    assert plan.clips("train")["stores"] == [strong] and plan.clips("eval")["stores"] == [eval0, eval1]
    assert len(plan.weak_clips()["stores"]) == 6
    assert plan.manifests("eval") == ["data/store/eval/0000.manifest.tsv", "data/store/eval/0001.manifest.tsv"]
    assert len(plan.manifests("weak")) == 6  # clips of AudioSet Weak's lists are in all groups
    lists = [plan.gate_job(SimpleNamespace(group=group)).splits for group in GROUPS]
    assert lists == [
        ["strong_train"],
        ["strong_eval"],
        ["weak_balanced_train", "weak_unbalanced_train", "weak_eval"],
    ]
    assert plan.search_clips("teachers", "proposed")["stores"] == [strong]
    judged = Plan(load({"teacher": {"search": {"judged_on": "eval"}}}))
    assert len(judged.search_clips("teachers", "proposed")["stores"]) == 48
    assert judged.search_coverage("teachers", "proposed") == ["data/coverage/strong.tsv", "data/coverage/eval.tsv"]


def test_another_number_of_weak_shards_leaves_the_other_groups_alone():
    def jobs(plan, group):
        wildcards = SimpleNamespace(group=group, shard="0001")
        return identity(plan.clips_job(wildcards)), identity(plan.acquire_job(wildcards))

    fewer, without = load({"audioset": {"download": {"shards": {"weak": 3}}}}), load({"audioset": {"weak": False}})
    for group in ("strong", "eval"):
        assert jobs(Plan(fewer), group) == jobs(Plan(without), group) == jobs(Plan(Config()), group)
    few, many = jobs(Plan(fewer), "weak"), jobs(Plan(Config()), "weak")
    assert few[0] != many[0] and few[1] == many[1]  # the audio follows from the table of clips, which is made again


def test_the_schema_accepts_every_configuration_file_and_refuses_a_wrong_key():
    import jsonschema
    import yaml

    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    for name in ("config", "demo", "released"):
        jsonschema.validate(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()), schema)
    assert (ROOT / "config/config.yaml").read_text().startswith("# yaml-language-server: $schema=../workflow/schemas/")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"student": {"recipe": {"epohcs": 1}}}, schema)


def test_the_configuration_of_the_paper_can_be_read_in_one_go():
    assert len((ROOT / "config/config.yaml").read_text().splitlines()) <= 250


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
        (
            {"step2": {"soft_labels": None}},
            ["step2", "distillation_weight is above 0, but soft_labels is null", "recipe: {distillation_weight: 0.0}"],
        ),
        ({"step2": {"soft_labels": {"index": None}}}, ["step2.soft_labels", "give index: {path: fname_to_index.pkl}"]),
        ({"step2": {"soft_labels": {"members": ["M2D"]}}}, ["either logits or members", "logits: null, index: null"]),
        (
            {"step2": {"soft_labels": {"logits": None, "index": None, "members": ["M3D"]}}},
            ["step2.soft_labels.members names 'M3D', which is none of ATST-F"],
        ),
        (
            {"step2": {"soft_labels": {"logits": {"path": "a.h5", "url": None}}}},
            ["step2.soft_labels", "index is for logits in .npy; write index: null"],
        ),
        (
            {"step2": {"soft_labels": {"logits": {"path": "a.pt", "url": None}, "index": None}}},
            ["step2.soft_labels", "has to end in .npy, .npz, .h5 or .hdf5"],
        ),
        ({"downstream": {"DESED": {"finetune": {"distillation_weight": 0.1}}}}, ["finetune.distillation_weight does"]),
        ({"student": {"soft_labels": {}}}, ["student.soft_labels", "either path or url", "{path: soft.h5, url"]),
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
        ({"step2": {"recipe": {"select": "last"}}}, ["step2.recipe.select does not act in this training"]),
        ({"teacher": {"recipe": {"select": "best_loss"}}}, ["teacher.recipe", "validation_share: 0.05"]),
        ({"teacher": {"recipe": {"patience": 3}}}, ["teacher.recipe", "patience", "validation_share: 0.05"]),
        ({"teacher": {"recipe": {"distillation_weight": 0.5}}}, ["teacher.recipe.distillation_weight does not act"]),
        ({"teacher": {"recipe": {"per_model": {"BERT": {}}}}}, ["teacher.recipe.per_model names 'BERT'"]),
        (
            {"student": {"recipe": {"per_model": {"BEATs": {"epohcs": 1}}}}},
            ["student.recipe.per_model.BEATs.epohcs", "did you mean 'epochs'"],
        ),
        ({"recipe": {"epohcs": 1}}, ["recipe.epohcs", "did you mean 'epochs'"]),
        *(
            ({"downstream": {"MAESTRO": {"frozen": {key: value}}}}, [f"downstream.MAESTRO.frozen.{key} does not act"])
            for key, value in {
                "ema": 0.9,
                "select": "last",
                "patience": 1,
                "validation_share": 0.1,
                "accumulate": 1,
                "sampler": "uniform",
                "augment": {},
            }.items()
        ),
        (
            {"downstream": {"DESED": {"finetune": {"validation_share": 0.1}}}},
            ["DESED.finetune.validation_share does not"],
        ),
        ({"studnt": 1}, ["studnt", "did you mean 'student'"]),
        ({"downstream": {"DC16-T2": {"head": "x"}}}, ["downstream.DC16-T2.head", "'linear' or 'attention'"]),
        ({"teacher": {"recipe": {"augment": {"mixup": 1.5}}}}, ["teacher.recipe.augment.mixup", "1.5"]),
        ({"downstream": {"full_setting": "best"}}, ["downstream.full_setting", "'best'"]),
        ({"downstream": {"checkpoints": ["untrained"], "modes": ["finetune"]}}, ["untrained", "add frozen to modes"]),
    ],
)
def test_a_mistake_is_told_with_its_key_and_what_to_write(values, words):
    with pytest.raises(UserError) as caught:
        load(values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_learning_rate_per_model_must_name_the_model():
    plan = Plan(load({"student": {"recipe": {"learning_rate": {"BEATs": 3e-4}}}}))
    assert train_job(plan, "proposed").recipes["BEATs"].learning_rate == 3e-4
    with pytest.raises(UserError, match="no value for M2D"):
        train_job(plan, "proposed", "M2D")


def test_a_difference_is_what_merging_needs():
    base, other = {"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": 2, "c": [1]}, "d": 1}
    assert difference(other, base) == {"a": {"b": 2}} and merge(base, difference(other, base)) == other


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
