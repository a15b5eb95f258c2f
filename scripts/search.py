"""Train one learning rate of a search, and judge it."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.common import processes
    from framekd.pipeline.search import try_rate
    from framekd.pipeline.strong import Given

    given = Given(
        snakemake.params.block,
        start=str(snakemake.input.start),
        data=snakemake.params.data,
        ensemble=next(map(str, snakemake.input.ensemble), None),
        tracking=snakemake.config["tracking"],
    )
    try_rate(given, out=snakemake.output.result, processes=processes(snakemake.resources.get("gpu", 0)))
