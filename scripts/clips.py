"""List every clip that the labels name, with its splits and its shard."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import ClipsJob
    from framekd.pipeline.audioset import list_clips

    list_clips(
        ClipsJob.model_validate(snakemake.params.job),
        labels=named(snakemake.input),
        out=snakemake.output[0],
    )
