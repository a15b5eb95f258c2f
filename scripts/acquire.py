"""Get the audio of one shard: local copies first, then a download."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.audioset import acquire

    acquire(
        snakemake.input[0],
        int(snakemake.wildcards.shard),
        snakemake.params.block,
        media=snakemake.params.media,
        store=snakemake.output.store,
        manifest=snakemake.output.manifest,
    )
