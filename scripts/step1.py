"""Step 1, and Step 2 where it is not trained here: a published checkpoint, or weights drawn from a seed."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.pretrain import step1

    step1(
        snakemake.wildcards.model,
        snakemake.params.block,
        downloads=snakemake.params.downloads,
        out=snakemake.output.weights,
    )
