"""Average the logits of all teachers of a setting over the training clips."""

from framekd.pipeline import job

with job(snakemake.log[0], threads=snakemake.threads):
    from framekd.pipeline.strong import average

    average(
        snakemake.input.teachers,
        data=snakemake.params.data,
        batch_size=snakemake.params.batch_size,
        out=snakemake.output[0],
    )
