"""Average the logits of all teachers of a setting over the training clips."""

from framekd.pipeline import job_log, named

with job_log(snakemake, resumes=True):
    from framekd.jobs import EnsembleJob
    from framekd.pipeline.ensemble import average

    average(
        EnsembleJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
    )
