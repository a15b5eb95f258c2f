"""Test the gaps of Table I for significance."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import SignificanceJob
    from framekd.pipeline.tables import write_significance

    write_significance(
        SignificanceJob.model_validate(snakemake.params.job),
        scores=list(snakemake.input),
        csv=snakemake.output[0],
    )
