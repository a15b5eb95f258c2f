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


# A ready-made file of soft labels that students learn from in place of this run's ensemble.
if plan.soft_files:

    rule soft_labels:
        output:
            file=f"{D}/soft_labels/{{file}}",
            sha256=f"{D}/soft_labels/{{file}}.sha256",
        log:
            f"{R}/logs/soft_labels/{{file}}.log",
        benchmark:
            f"{R}/benchmarks/soft_labels/{{file}}.tsv"
        wildcard_constraints:
            file="|".join(map(re.escape, plan.soft_files)),
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("acquire")
        resources:
            **plan.resources("acquire"),
        params:
            block=lambda wildcards: plan.soft_file(wildcards.file),
        script:
            "../../scripts/soft_labels.py"
