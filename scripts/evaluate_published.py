"""Score the published Step 3 checkpoint of a model on the evaluation clips."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import EvaluatePublishedJob
    from framekd.pipeline.published import evaluate_published

    evaluate_published(
        EvaluatePublishedJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
    )
