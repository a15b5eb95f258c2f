# Step 1: external checkpoints. Step 2: training on AudioSet Weak, or a published checkpoint of it.
rule step1:
    output:
        weights=f"{R}/checkpoints/step1/{{model}}/model.safetensors",
        spec=f"{R}/checkpoints/step1/{{model}}/spec.json",
    log:
        f"{R}/logs/step1/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/step1/{{model}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("step1")
    resources:
        **plan.resources("step1"),
    params:
        block=lambda wildcards: plan.step1(wildcards.model),
        downloads=f"{D}/checkpoints",
    script:
        "../../scripts/step1.py"


if cfg.step2.train:

    rule step2:
        input:
            coverage=f"{D}/coverage.tsv",
            start=f"{R}/checkpoints/step1/{{model}}/model.safetensors",
        output:
            weights=f"{R}/checkpoints/step2/{{model}}/model.safetensors",
            spec=f"{R}/checkpoints/step2/{{model}}/spec.json",
            history=f"{R}/checkpoints/step2/{{model}}/history.jsonl",
        log:
            f"{R}/logs/step2/{{model}}.log",
        benchmark:
            f"{R}/benchmarks/step2/{{model}}.tsv"
        wildcard_constraints:
            model="|".join(cfg.step2.train),
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("step2")
        resources:
            **plan.resources("step2"),
        params:
            block=lambda wildcards: plan.step2(wildcards.model),
            data=D,
            splits=cfg.audioset.weak_splits,
        script:
            "../../scripts/step2.py"


rule step2_external:
    output:
        weights=f"{R}/checkpoints/step2/{{model}}/model.safetensors",
        spec=f"{R}/checkpoints/step2/{{model}}/spec.json",
    log:
        f"{R}/logs/step2_external/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/step2_external/{{model}}.tsv"
    wildcard_constraints:
        model="|".join(plan.step2_external) or "none",
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("step1")
    resources:
        **plan.resources("step1"),
    params:
        block=lambda wildcards: plan.step2(wildcards.model),
        downloads=f"{D}/checkpoints",
    script:
        "../../scripts/step1.py"
