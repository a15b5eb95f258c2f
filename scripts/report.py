"""Write the report."""

from framekd.pipeline import job_log

with job_log(snakemake):
    from framekd.jobs import ReportJob
    from framekd.pipeline.report import report

    report(
        ReportJob.model_validate(snakemake.params.job),
        inputs=dict(snakemake.input.items()),
        out=dict(snakemake.output.items()),
    )
