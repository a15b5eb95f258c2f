"""Fetch AudioSet's label files, or take local copies."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.audioset import get_labels

    get_labels(snakemake.params.block, out=dict(snakemake.output.items()))
