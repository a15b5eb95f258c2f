"""Choose a learning rate from those that were tried."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import ChooseJob
    from framekd.pipeline.search import choose_rate

    choose_rate(
        ChooseJob.model_validate(snakemake.params.job),
        results=list(snakemake.input),
        rate=snakemake.output.rate,
        candidates=snakemake.output.candidates,
    )
