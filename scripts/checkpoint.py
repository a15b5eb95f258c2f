"""Steps 1 and 2: published checkpoints in our own format, or weights drawn from a seed."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import CheckpointJob
    from framekd.pipeline.checkpoints import make_checkpoints

    make_checkpoints(
        CheckpointJob.model_validate(snakemake.params.job),
        weights=snakemake.output.weights,
    )
