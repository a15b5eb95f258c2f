# Table II: each task from each checkpoint, frozen and fine-tuned.
rule downstream:
    input:
        weights=lambda wildcards: plan.checkpoint(wildcards.checkpoint, wildcards.model),
        miniature=lambda wildcards: plan.miniature(wildcards.task),
    output:
        f"{R}/downstream/{{task}}/{{model}}/{{checkpoint}}.csv",
    log:
        f"{R}/logs/downstream/{{task}}/{{model}}/{{checkpoint}}.log",
    benchmark:
        f"{R}/benchmarks/downstream/{{task}}/{{model}}/{{checkpoint}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("downstream")
    resources:
        **plan.resources("downstream"),
    params:
        block=lambda wildcards: plan.task(wildcards.task, wildcards.model),
    script:
        "../../scripts/downstream.py"


rule table2:
    input:
        expand(
            f"{R}/downstream/{{task}}/{{model}}/{{checkpoint}}.csv",
            task=plan.tasks,
            model=cfg.models,
            checkpoint=cfg.downstream.checkpoints,
        ),
    output:
        csv=f"{R}/table2.csv",
        md=f"{R}/table2.md",
        tex=f"{R}/table2.tex",
    log:
        f"{R}/logs/table2.log",
    benchmark:
        f"{R}/benchmarks/table2.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        miniature=cfg.miniature is not None,
        version=VERSIONS["tables"],
    script:
        "../../scripts/table2.py"
