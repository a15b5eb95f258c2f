# The logits of all teachers of a setting, averaged over the training clips: what students learn from.
rule ensemble:
    input:
        coverage=f"{D}/coverage.tsv",
        teachers=lambda wildcards: plan.runs("teachers", wildcards.setting),
    output:
        f"{R}/ensembles/{{setting}}.h5",
    log:
        f"{R}/logs/ensembles/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/ensembles/{{setting}}.tsv"
    wildcard_constraints:
        setting="|".join(plan.teacher_settings) or "none",
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("ensemble")
    resources:
        **plan.resources("ensemble"),
    params:
        batch_size=cfg.evaluation.batch_size,
        version=VERSIONS["ensemble"],
        data=D,
    script:
        "../../scripts/ensemble.py"
