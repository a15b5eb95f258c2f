"""Get the audio of one shard: local copies first, then a download."""

from framekd.pipeline import job_log

with job_log(snakemake, resumes=True):
    from framekd.jobs import AcquireJob
    from framekd.pipeline.audioset import acquire

    acquire(
        AcquireJob.model_validate(snakemake.params.job),
        clips=snakemake.input.clips,
        store=snakemake.output.store,
        manifest=snakemake.output.manifest,
    )
