"""Step 3: train teachers of one setting and architecture."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.common import processes
    from framekd.pipeline.strong import Given, train

    given = Given(
        snakemake.params.block,
        start=str(snakemake.input.start),
        data=snakemake.params.data,
        tracking=snakemake.config["tracking"],
    )
    train(
        given,
        dict(zip(snakemake.params.seeds, map(str, snakemake.output.weights), strict=True)),
        rate=next(iter(snakemake.input.rate), None),
        processes=processes(snakemake.resources.get("gpu", 0)),
    )
