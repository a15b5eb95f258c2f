"""Store own recordings as clips, and write their events."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import ExtraJob
    from framekd.pipeline.audioset import store_extra

    store_extra(
        ExtraJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=named(snakemake.output),
    )
