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


# Own recordings that join AudioSet Strong's training clips.
if cfg.audioset.extra:

    rule extra:
        input:
            labels=cfg.audioset.extra.labels,
            recordings=plan.extra_audio,
            train_strong=plan.labels["train_strong"],
            mid_to_display_name=plan.labels["mid_to_display_name"],
        output:
            audio=plan.extra["audio.h5"],
            events=plan.extra["events.tsv"],
        log:
            f"{R}/logs/data/extra.log",
        benchmark:
            f"{R}/benchmarks/data/extra.tsv"
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("acquire")
        resources:
            **plan.resources("acquire"),
        params:
            **plan.params(plan.extra_job),
        script:
            "../../scripts/extra.py"


# The clips of a group (by need: `strong`, `eval` or `weak`), and the shard that each belongs to.
rule clips:
    input:
        **plan.labels,
    output:
        f"{D}/clips/{{group}}.tsv",
    log:
        f"{R}/logs/data/clips/{{group}}.log",
    benchmark:
        f"{R}/benchmarks/data/clips/{{group}}.tsv"
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
        clips=f"{D}/clips/{{group}}.tsv",
    output:
        store=f"{D}/store/{{group}}/{{shard}}.h5",
        manifest=f"{D}/store/{{group}}/{{shard}}.manifest.tsv",
    log:
        f"{R}/logs/acquire/{{group}}/{{shard}}.log",
    benchmark:
        f"{R}/benchmarks/acquire/{{group}}/{{shard}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("acquire")
    resources:
        **plan.resources("acquire"),
    params:
        **plan.params(plan.acquire_job),
    script:
        "../../scripts/acquire.py"


# What came of a group, what did not and why. Too little stops here, with counts. Jobs that use the clips wait for this
# file, but do not read it: it is an `ancient` input there, so that a new count alone reruns none of them.
rule gate:
    input:
        **plan.labels,
        manifests=lambda w: plan.manifests(w.group),
    output:
        f"{D}/coverage/{{group}}.tsv",
    log:
        f"{R}/logs/data/gate/{{group}}.log",
    benchmark:
        f"{R}/benchmarks/data/gate/{{group}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        **plan.params(plan.gate_job),
    script:
        "../../scripts/gate.py"
