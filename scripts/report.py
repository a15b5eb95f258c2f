"""Write the report."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import ReportJob
    from framekd.pipeline.report import report

    report(
        ReportJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=named(snakemake.output),
    )
