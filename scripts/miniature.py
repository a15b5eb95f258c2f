"""Build one part of the embedded miniature."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.acquire import build_miniature

    build_miniature(snakemake.params.part, snakemake.params.block, out=snakemake.output[0])
