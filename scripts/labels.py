"""Fetch AudioSet's label files, or copy local ones."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import LabelsJob
    from framekd.pipeline.audioset import get_labels

    get_labels(
        LabelsJob.model_validate(snakemake.params.job),
        out=named(snakemake.output),
    )
