"""Count what came, and stop before any training if a split is empty or a class has no clip."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.acquire import gate

    labels = {name: path for name, path in snakemake.input.items() if isinstance(path, str) and name != "clips"}
    gate(
        snakemake.input.clips,
        snakemake.input.manifests,
        labels,
        snakemake.params.block,
        out=snakemake.output.table,
    )
