"""Score every model of a setting on the evaluation clips; of teachers, their ensemble too."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import EvaluateJob
    from framekd.pipeline.evaluate import evaluate

    evaluate(
        EvaluateJob.model_validate(snakemake.params.job),
        inputs=dict(snakemake.input.items()),
        out=dict(snakemake.output.items()),
    )
