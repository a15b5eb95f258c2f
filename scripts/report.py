"""Write the report."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.config import load
    from framekd.report import write_report

    config = load(snakemake.config)
    missing = write_report(
        snakemake.output.html,
        results_dir=snakemake.params.results,
        data_dir=snakemake.params.data,
        config=config,
    )
    print(*missing, sep="\n")
