"""Step 3: train students of one setting and architecture, distilled where the setting has an ensemble."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.common import processes
    from framekd.pipeline.strong import Given, train

    given = Given(
        snakemake.params.block,
        start=str(snakemake.input.start),
        data=snakemake.params.data,
        ensemble=next(map(str, snakemake.input.ensemble), None),
        tracking=snakemake.config["tracking"],
    )
    train(
        given,
        dict(zip(snakemake.params.seeds, map(str, snakemake.output.weights), strict=True)),
        rate=next(iter(snakemake.input.rate), None),
        processes=processes(snakemake.resources.get("gpu", 0)),
    )
