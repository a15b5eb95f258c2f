"""Step 2: train on AudioSet Weak."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.pretrain import step2

    step2(
        snakemake.params.block,
        start=snakemake.input.start,
        data=snakemake.params.data,
        splits=snakemake.params.splits,
        out=snakemake.output.weights,
    )
