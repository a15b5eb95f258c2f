# framekd: from AudioSet to the tables of the paper. The stages are in workflow/rules, one file each;
# the work is in src/framekd; the numbers are in config/.
import os
import re
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, f"{workflow.basedir}/src")
os.environ["PYTHONPATH"] = (
    f"{workflow.basedir}/src"  # for the jobs, in whatever environment they run
)

from framekd.checks import checked
from framekd.config import GROUPS, UserError, load
from framekd.graph import SEARCHED, STAGES
from framekd.plan import Plan


configfile: "config/config.yaml"


if "FRAMEKD_ONE_BY_ONE" in os.environ:  # framekd.pipeline.second_pass
    config |= {"models_per_job": 1, "seeds_per_job": 1}
try:
    # A job's own process takes what the main process has checked.
    plan = Plan(
        checked(
            ["config/config.yaml", *workflow.overwrite_configfiles],
            given=workflow.config_settings.config,
            values=config,
            targets=sys.argv[1:],  # Snakemake itself tells its targets too late
        )
        if workflow.is_main_process
        else load(config)
    )
except UserError as error:
    raise WorkflowError(str(error)) from None

cfg, R, D = plan.config, plan.results, plan.data


wildcard_constraints:
    model="|".join(cfg.models),
    setting="|".join(cfg.settings),
    task="|".join(plan.tasks),
    checkpoint="untrained|step1|step2|full",
    group="|".join(GROUPS),
    shard=r"\d{4}",


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/search.smk"
include: "workflow/rules/ensemble.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/downstream.smk"
include: "workflow/rules/report.smk"


onstart:
    from framekd.commands.resume import hold, wait_for_clock
    from framekd.pipeline.partial import write_config

    hold()
    wait_for_clock(R, D)
    write_config(plan)


# Where trainings of a job failed, what follows from its others. Then what there is of tables that lack a cell, and why
# it is missing.
onerror:
    from framekd.pipeline.partial import write_partial_tables
    from framekd.pipeline.second_pass import second_pass

    stopped = getattr(workflow.scheduler, "_user_kill", None) is not None
    stopped = stopped or not workflow.execution_settings.keep_going
    if not second_pass(plan, stopped=stopped):
        print("What there is:", *write_partial_tables(plan), file=sys.stderr)


rule all:
    default_target: True
    input:
        plan.results_files,
