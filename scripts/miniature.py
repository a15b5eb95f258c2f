"""Build one part of the embedded miniature."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.audioset import build_miniature

    build_miniature(
        snakemake.params.part,
        snakemake.params.block,
        threads=snakemake.threads,
        out=snakemake.output[0],
    )
