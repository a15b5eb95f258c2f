# The logits of all teachers of a setting, averaged over the training clips: what students learn from.
rule ensemble:
    input:
        unpack(lambda w: plan.models("teachers", w.setting)),
        **plan.clips("train"),
        coverage=ancient(plan.coverage("strong")),
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
        **plan.params(plan.ensemble_job),
    script:
        "../../scripts/ensemble.py"


# A ready-made file of soft labels that students learn from in place of this run's ensemble.
if cfg.soft_files():

    rule soft_labels:
        output:
            file=f"{D}/soft_labels/{{file}}",
            sha256=f"{D}/soft_labels/{{file}}.sha256",
        log:
            f"{R}/logs/soft_labels/{{file}}.log",
        benchmark:
            f"{R}/benchmarks/soft_labels/{{file}}.tsv"
        wildcard_constraints:
            file="|".join(map(re.escape, cfg.soft_files())),
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("acquire")
        resources:
            **plan.resources("acquire"),
        params:
            **plan.params(plan.soft_labels_job),
        script:
            "../../scripts/soft_labels.py"
