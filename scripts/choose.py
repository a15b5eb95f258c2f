"""Choose a learning rate from those that were tried."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.search import choose_rate

    choose_rate(
        snakemake.input,
        snakemake.params.block,
        out=snakemake.output.rate,
        candidates=snakemake.output.candidates,
    )
