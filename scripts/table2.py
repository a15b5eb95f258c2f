"""Write Table II from the downstream jobs."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd import tables

    tables.write_table2(snakemake.input, snakemake.output.csv, miniature=snakemake.params.miniature)
