"""Score trained models on the evaluation clips, or the ensemble of teachers."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import EvaluateJob
    from framekd.pipeline.evaluate import evaluate

    evaluate(
        EvaluateJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=named(snakemake.output),
    )
