"""Average the clip logits of models that were trained on weak labels."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import WeakEnsembleJob
    from framekd.pipeline.ensemble import average_clips

    average_clips(
        WeakEnsembleJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
    )
