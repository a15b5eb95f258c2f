"""List every clip that the labels name, with its splits and its shard."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.audioset import list_clips

    list_clips(dict(snakemake.input.items()), snakemake.params.block, out=snakemake.output[0])
