"""Train one learning rate of a search, and judge it."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import SearchJob
    from framekd.pipeline.search import try_rate
    from framekd.pipeline.train import processes

    try_rate(
        SearchJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
        processes=processes(snakemake.resources.get("gpu", 0)),
    )
