# AudioSet's labels and audio, or the embedded miniature in their place.
if cfg.miniature:

    rule miniature:
        input:
            "miniature/recordings.csv",
        output:
            f"{D}/miniature/{{part}}/summary.json",
        log:
            f"{R}/logs/miniature/{{part}}.log",
        benchmark:
            f"{R}/benchmarks/miniature/{{part}}.tsv"
        conda:
            "../envs/framekd.yaml"
        threads: 1
        resources:
            **plan.resources("labels"),
        params:
            part="{part}",
            block=cfg.miniature.model_dump(mode="json"),
            version=VERSIONS["miniature"],
        script:
            "../../scripts/miniature.py"


rule labels:
    input:
        plan.miniature("audioset"),
    output:
        **plan.labels,
    log:
        f"{R}/logs/labels.log",
    benchmark:
        f"{R}/benchmarks/labels.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("labels")
    resources:
        **plan.resources("labels"),
    params:
        block=plan.label_sources(),
    script:
        "../../scripts/labels.py"


# Every clip that the labels name, and the shard that it belongs to.
rule clips:
    input:
        **plan.labels,
    output:
        f"{D}/clips.tsv",
    log:
        f"{R}/logs/clips.log",
    benchmark:
        f"{R}/benchmarks/clips.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("labels")
    resources:
        **plan.resources("labels"),
    params:
        block=plan.clips(),
    script:
        "../../scripts/clips.py"


rule acquire:
    input:
        f"{D}/clips.tsv",
    output:
        store=f"{D}/store/{{shard}}.h5",
        manifest=f"{D}/store/{{shard}}.manifest.tsv",
    log:
        f"{R}/logs/acquire/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/acquire/{{shard}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("acquire")
    resources:
        **plan.resources("acquire"),
    params:
        block=plan.acquire(),
        media=plan.miniature_media(),
        version=VERSIONS["acquire"],
    script:
        "../../scripts/acquire.py"


# The gate before any training: what came, what did not and why; too little stops here, with counts.
rule gate:
    input:
        **plan.labels,
        stores=expand(f"{D}/store/{{shard}}.h5", shard=plan.shards),
        manifests=expand(f"{D}/store/{{shard}}.manifest.tsv", shard=plan.shards),
    output:
        table=f"{D}/coverage.tsv",
    log:
        f"{R}/logs/gate.log",
    benchmark:
        f"{R}/benchmarks/gate.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        block=plan.gate(),
    script:
        "../../scripts/gate.py"
