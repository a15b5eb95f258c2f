"""Step 3: train students of one setting and architecture, distilled where the setting has an ensemble."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.strong import train

    train(
        snakemake.params.block,
        start=snakemake.input.start,
        data=snakemake.params.data,
        ensemble=snakemake.input.get("ensemble") or None,
        rate=next(iter(snakemake.input.rate), None),
        runs=dict(zip(snakemake.params.seeds, snakemake.output.weights, strict=True)),
    )
