"""Build one data set of the embedded miniature."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import MiniatureJob
    from framekd.pipeline.audioset import build_miniature

    build_miniature(
        MiniatureJob.model_validate(snakemake.params.job),
        summary=snakemake.output[0],
        threads=snakemake.threads,
    )
