"""Words of a cluster: from the configuration to what each stage asks for."""

from __future__ import annotations

import pytest

from framekd.commands.cluster import options
from framekd.config import UserError, load
from framekd.plan import Plan

SITE = {
    "cpu": {"slurm_partition": "short"},
    "gpu": {"slurm_partition": "gpu", "slurm_account": "me", "gpu_model": "a100"},
}


def test_a_line_for_all_stages_and_a_line_for_one():
    own = {"step2": {"slurm_partition": "long", "constraint": "a100&80gb", "qos": "high"}, "teacher": {"gpu": 0}}
    plan = Plan(load({"site": SITE, "resources": own}))
    assert plan.resources("acquire")["slurm_partition"] == "short" and "gpu" not in plan.resources("acquire")
    assert plan.resources("student") | {"mem_mb": 0} == {
        **{"mem_mb": 0, "runtime": 1440, "gpu": 1, "gpu_model": "a100"},
        **{"slurm_partition": "gpu", "slurm_account": "me"},
    }
    step2 = plan.resources("step2")
    assert [step2[k] for k in ("slurm_partition", "slurm_account", "constraint", "qos")] == [
        "long", "me", "a100&80gb", "high",
    ]  # fmt: skip
    assert plan.resources("teacher")["slurm_partition"] == "short" and "gpu_model" not in plan.resources("teacher")
    assert options(plan, "student")[:6] == ["-p", "gpu", "-A", "me", "-t", "1440"]
    assert "--gpus=a100:1" in options(plan, "student") and "--ntasks=1" in options(plan, "acquire")


@pytest.mark.parametrize("word", ["gpu; rm -rf /", "$(id)", "a b"])
def test_a_word_that_a_shell_would_read_is_refused(word):
    with pytest.raises(UserError, match=r"resources\.step2\.slurm_partition"):
        load({"resources": {"step2": {"slurm_partition": word}}})


def test_no_stage_has_a_common_limit_of_more_than_a_day():
    assert max(stage.runtime for stage in load({}).resources.values()) <= 1440
