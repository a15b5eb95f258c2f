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
            **plan.params(plan.miniature_job),
        script:
            "../../scripts/miniature.py"


rule labels:
    input:
        plan.miniature("audioset"),
    output:
        **plan.labels,
    log:
        f"{R}/logs/data/labels.log",
    benchmark:
        f"{R}/benchmarks/data/labels.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("labels")
    resources:
        **plan.resources("labels"),
    params:
        **plan.params(plan.labels_job),
    script:
        "../../scripts/labels.py"


# Every clip that the labels name, and the shard that it belongs to.
rule clips:
    input:
        **plan.labels,
    output:
        f"{D}/clips.tsv",
    log:
        f"{R}/logs/data/clips.log",
    benchmark:
        f"{R}/benchmarks/data/clips.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("labels")
    resources:
        **plan.resources("labels"),
    params:
        **plan.params(plan.clips_job),
    script:
        "../../scripts/clips.py"


rule acquire:
    input:
        clips=f"{D}/clips.tsv",
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
        **plan.params(plan.acquire_job),
    script:
        "../../scripts/acquire.py"


# What came, what did not and why. Too little stops here, with counts. Every training waits for this file, but no
# training reads it: it is an `ancient` input there, so that a new count alone trains nothing again.
rule gate:
    input:
        **plan.labels,
        manifests=plan.manifests,
    output:
        f"{D}/coverage.tsv",
    log:
        f"{R}/logs/data/gate.log",
    benchmark:
        f"{R}/benchmarks/data/gate.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        **plan.params(plan.gate_job),
    script:
        "../../scripts/gate.py"
