"""Write a table of the paper from the scores of a run."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import TableJob
    from framekd.pipeline.tables import write_table

    write_table(
        TableJob.model_validate(snakemake.params.job),
        scores=list(snakemake.input.scores),
        csv=snakemake.output.csv,
    )
