"""One downstream task from one checkpoint: frozen and fine-tuned, all seeds or folds."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.transfer import transfer

    transfer(
        snakemake.wildcards.task,
        snakemake.params.block,
        weights=snakemake.input.weights,
        checkpoint=snakemake.wildcards.checkpoint,
        out=snakemake.output[0],
    )
