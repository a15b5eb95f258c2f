"""Step 2: train on AudioSet Weak."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import Step2Job
    from framekd.pipeline.train import processes, train_weak

    train_weak(
        Step2Job.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        weights=list(snakemake.output.weights),
        processes=processes(snakemake.resources.get("gpu", 0)),
    )
