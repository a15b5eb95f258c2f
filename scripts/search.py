"""Train one learning rate of a search, and judge it."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.search import try_rate

    try_rate(
        snakemake.params.block,
        start=snakemake.input.start,
        data=snakemake.params.data,
        ensemble=snakemake.input.get("ensemble") or None,
        out=snakemake.output.result,
    )
