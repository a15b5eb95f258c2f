"""One downstream task from one checkpoint: frozen and fine-tuned, all seeds or folds."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import DownstreamJob
    from framekd.pipeline.downstream import transfer

    transfer(
        DownstreamJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=list(snakemake.output.tables),
    )
