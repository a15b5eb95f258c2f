# PSDS1 of every model of a setting, and of the ensemble of its teachers.
rule evaluate:
    input:
        coverage=f"{D}/coverage.tsv",
        weights=lambda wildcards: plan.runs(wildcards.stage, wildcards.setting),
    output:
        table=f"{R}/evaluation/{{stage}}/{{setting}}.csv",
        per_class=f"{R}/evaluation/{{stage}}/{{setting}}.per_class.csv",
        examples=f"{R}/evaluation/{{stage}}/{{setting}}.examples.npz",
    log:
        f"{R}/logs/evaluate/{{stage}}/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/evaluate/{{stage}}/{{setting}}.tsv"
    wildcard_constraints:
        stage="teachers|students",
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        block=plan.evaluation(),
        data=D,
    script:
        "../../scripts/evaluate.py"


rule table1:
    input:
        list(dict.fromkeys(plan.settings_table.values())),
    output:
        csv=f"{R}/table1.csv",
        md=f"{R}/table1.md",
        tex=f"{R}/table1.tex",
    log:
        f"{R}/logs/table1.log",
    benchmark:
        f"{R}/benchmarks/table1.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        settings=plan.settings_table,
        version=VERSIONS["tables"],
        miniature=cfg.miniature is not None,
    script:
        "../../scripts/table1.py"


rule teachers:
    input:
        expand(
            f"{R}/evaluation/teachers/{{setting}}.csv", setting=plan.teacher_settings
        ),
    output:
        f"{R}/teachers.csv",
    log:
        f"{R}/logs/teachers.log",
    benchmark:
        f"{R}/benchmarks/teachers.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        version=VERSIONS["tables"],
    script:
        "../../scripts/teachers.py"


rule significance:
    input:
        list(dict.fromkeys(plan.settings_table.values())),
    output:
        f"{R}/significance.csv",
    log:
        f"{R}/logs/significance.log",
    benchmark:
        f"{R}/benchmarks/significance.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        settings=plan.settings_table,
        block=plan.significance(),
        version=VERSIONS["tables"],
    script:
        "../../scripts/significance.py"
