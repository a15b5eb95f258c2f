"""Write Table I from the scores of its settings."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd import tables

    tables.write_table1(
        dict(snakemake.input.items()),
        snakemake.output.csv,
        miniature=snakemake.params.miniature,
    )
