"""Make the folder of a downstream task, or take one that is there, and count what it has."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import TaskDataJob
    from framekd.pipeline.task_data import prepare

    prepare(
        TaskDataJob.model_validate(snakemake.params.job),
        out=named(snakemake.output),
    )
