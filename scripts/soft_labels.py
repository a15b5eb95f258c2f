"""Fetch a ready-made file of soft labels."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.strong import fetch_soft_labels

    fetch_soft_labels(snakemake.params.block, out=snakemake.output.file)
