"""Write significance from the scores."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd import tables
    from framekd.config import load

    tables.write_significance(snakemake.params.results, load(snakemake.config))
