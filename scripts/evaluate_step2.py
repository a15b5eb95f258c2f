"""Score a Step 2 checkpoint on AudioSet Weak's evaluation clips."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import EvaluateStep2Job
    from framekd.pipeline.evaluate import evaluate_step2

    evaluate_step2(
        EvaluateStep2Job.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
    )
