"""Step 2: train on AudioSet Weak."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.common import processes
    from framekd.pipeline.pretrain import step2

    step2(
        snakemake.params.block,
        start=str(snakemake.input.start),
        data=snakemake.params.data,
        splits=snakemake.params.splits,
        processes=processes(snakemake.resources.get("gpu", 0)),
        tracking=snakemake.config["tracking"],
        out=snakemake.output.weights,
    )
