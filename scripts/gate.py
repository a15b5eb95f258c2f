"""Count what came, and stop before any training if a split is empty or a class has no clip."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.audioset import gate

    gate(
        snakemake.input.manifests,
        {name: path for name, path in snakemake.input.items() if isinstance(path, str)},
        snakemake.params.block,
        out=snakemake.output.table,
    )
