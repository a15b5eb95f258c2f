"""Test the gaps of Table I for significance."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd import tables

    tables.write_significance(
        dict(snakemake.input.items()),
        snakemake.output[0],
        **snakemake.params.block,
    )
