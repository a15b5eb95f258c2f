"""Fetch a ready-made file of soft labels."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import SoftLabelsJob
    from framekd.pipeline.ensemble import fetch_soft_labels

    fetch_soft_labels(
        SoftLabelsJob.model_validate(snakemake.params.job),
        out=snakemake.output.file,
    )
