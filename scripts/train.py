"""Step 3: train teachers or students of one setting."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import TrainJob
    from framekd.pipeline.train import processes, train_strong

    train_strong(
        TrainJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        weights=list(snakemake.output.weights),
        processes=processes(snakemake.resources.get("gpu", 0)),
    )
