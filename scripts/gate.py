"""Count what was acquired, and stop before any training if it is too little."""

from framekd.pipeline import job_log, named

with job_log(snakemake):
    from framekd.jobs import GateJob
    from framekd.pipeline.audioset import gate

    gate(
        GateJob.model_validate(snakemake.params.job),
        inputs=named(snakemake.input),
        out=snakemake.output[0],
    )
