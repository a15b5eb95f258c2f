"""Where a run is shown: real TensorBoard files; of Weights & Biases, what is handed over its border."""

import json
import sys
import types
from types import SimpleNamespace

import pytest
from training_runs import STEPS, run

from framekd.config import Config, Tracking, UserError, identity, load
from framekd.graph import Pack
from framekd.plan import Plan
from framekd.train import Stopped


def scalars(directory):
    """{name: [(step, value), …]} of the event files in `directory`."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(directory / "tensorboard"), {"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def losses(directory):
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    return [(line["step"], pytest.approx(line["train/loss"])) for line in lines if "train/loss" in line]


def test_tensorboard_shows_the_history(tmp_path):
    run("student", tmp_path, tracking=Tracking(tensorboard=True))
    shown = scalars(tmp_path)
    assert shown["train/loss"] == losses(tmp_path) and len(shown["train/loss"]) == STEPS
    assert set(shown) == {"train/loss", "train/lr", "train/clips_per_second"}


def test_tensorboard_shows_a_continued_run_once(tmp_path):
    """Steps after the last state were told by the run that stopped; the continuation takes them back."""

    def forward(model, mel, generator):
        forward.calls += 1
        if forward.calls == 9:
            raise KeyboardInterrupt  # between two states
        return model(mel, generator=generator)

    forward.calls = 0
    with pytest.raises(KeyboardInterrupt):
        run("student", tmp_path, tracking=Tracking(tensorboard=True), forward=forward)
    assert scalars(tmp_path)["train/loss"][-1][0] == 8
    run("student", tmp_path, tracking=Tracking(tensorboard=True))
    shown = scalars(tmp_path)["train/loss"]
    assert [step for step, _ in shown] == list(range(1, STEPS + 1)) and shown == losses(tmp_path)


# --------------------------------------------------------------------------------------------- Weights & Biases


@pytest.fixture
def wandb(monkeypatch):
    """What stands for the package where it is not installed: it notes what it is told."""
    module = types.ModuleType("wandb")
    module.told, module.runs = [], []
    module.Error = type("Error", (Exception,), {})
    module.Settings = lambda **values: values

    class Run:
        def __init__(self):
            self.finished = 0

        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            module.told.append(values)

        def finish(self):
            self.finished += 1

    def init(**values):
        module.runs.append((values, opened := Run()))
        return opened

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_weights_and_biases_is_told_the_history_and_no_more(wandb, tmp_path):
    run("student", tmp_path, tracking=Tracking(wandb="sounds", wandb_mode="offline"))
    (given, opened), = wandb.runs  # fmt: skip
    assert (given["project"], given["mode"], given["dir"]) == ("sounds", "offline", str(tmp_path))
    assert set(given["config"]) == {"recipe", "lr", "seed", "steps", "objective", "soft", "select"}
    assert given["settings"] == {"console": "off", "disable_git": True, "disable_code": True}
    assert [(line["step"], line["train/loss"]) for line in wandb.told] == losses(tmp_path)
    assert opened.finished == 1


def test_a_continuation_is_the_same_run_of_weights_and_biases(wandb, tmp_path):
    tracking = Tracking(wandb="sounds")
    with pytest.raises(Stopped):
        run("student", tmp_path, tracking=tracking, time_limit=0.0)
    run("student", tmp_path, tracking=tracking)
    run("teacher", tmp_path, tracking=tracking)
    run("teacher", tmp_path / "elsewhere", tracking=tracking)
    ids = [given["id"] for given, _ in wandb.runs]
    assert ids[0] == ids[1] and len(set(ids)) == 3 and all(opened.finished == 1 for _, opened in wandb.runs)
    assert all(given["resume"] == "allow" for given, _ in wandb.runs)


def test_a_refusal_of_weights_and_biases_is_told(wandb, tmp_path, monkeypatch):
    def init(**_):
        raise wandb.Error("no API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(UserError, match=r"no API key configured; run wandb login, or write .*wandb_mode: offline"):
        run("student", tmp_path, tracking=Tracking(wandb="sounds"))


@pytest.mark.parametrize(
    ("package", "tracking", "sentence"),
    [
        ("wandb", {"wandb": "sounds"}, r"not installed; pip install wandb, or write tracking: \{wandb: null\}"),
        (
            "torch.utils.tensorboard",
            {"tensorboard": True},
            r"not installed; pip install framekd\[monitor\], or write tracking: \{tensorboard: false\}",
        ),
    ],
)
def test_a_package_that_is_missing_is_told(package, tracking, sentence, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=sentence):
        run("student", tmp_path, tracking=Tracking(**tracking))


# ---------------------------------------------------------------------------------------------------------- graph


def test_tracking_reruns_nothing():
    plans = [Plan(Config()), Plan(load({"tracking": {"tensorboard": True, "wandb": "sounds"}}))]
    wildcards = SimpleNamespace(setting="proposed", model="fPaSST", task="DESED", checkpoint="full")
    pack = Pack("", None, (1,))
    trained = [plan.train_job(wildcards, "teachers", pack) for plan in plans]
    weak = [plan.step2_job(wildcards, pack) for plan in plans]
    assert identity(trained[0]) == identity(trained[1]) and identity(weak[0]) == identity(weak[1])
    assert trained[1].tracking.wandb == weak[1].tracking.wandb == "sounds" and "sounds" not in str(identity(weak[1]))
