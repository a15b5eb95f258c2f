"""Score every model of a setting on the evaluation clips, and the ensemble of its teachers."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.evaluate import evaluate

    evaluate(
        snakemake.input.weights,
        stage=snakemake.params.stage,
        setting=snakemake.wildcards.setting,
        data=snakemake.params.data,
        **snakemake.params.block,
        out=dict(snakemake.output.items()),
    )
