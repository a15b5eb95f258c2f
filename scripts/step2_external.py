"""Step 2: a published checkpoint."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.pretrain import step1

    step1(
        snakemake.wildcards.model,
        snakemake.params.block,
        downloads=snakemake.params.downloads,
        out=snakemake.output.weights,
    )
