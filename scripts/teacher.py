"""Step 3: train teachers of one setting and architecture."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.strong import train

    train(
        snakemake.params.block,
        start=snakemake.input.start,
        data=snakemake.params.data,
        rate=next(iter(snakemake.input.rate), None),
        runs=dict(zip(snakemake.params.seeds, snakemake.output.weights, strict=True)),
    )
