# PSDS1 of every model of a setting on the evaluation clips, and of the ensemble of its teachers; then Table I.
rule evaluate_teachers:
    input:
        coverage=f"{D}/coverage.tsv",
        weights=lambda wildcards: plan.runs("teachers", wildcards.setting),
    output:
        table=f"{R}/evaluation/teachers/{{setting}}.csv",
        per_class=f"{R}/evaluation/teachers/{{setting}}.per_class.csv",
        examples=f"{R}/evaluation/teachers/{{setting}}.examples.npz",
    log:
        f"{R}/logs/evaluate/teachers/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/evaluate/teachers/{{setting}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        stage="teachers",
        block=plan.evaluation(),
        data=D,
    script:
        "../../scripts/evaluate.py"


rule evaluate_students:
    input:
        coverage=f"{D}/coverage.tsv",
        weights=lambda wildcards: plan.runs("students", wildcards.setting),
    output:
        table=f"{R}/evaluation/students/{{setting}}.csv",
        per_class=f"{R}/evaluation/students/{{setting}}.per_class.csv",
        examples=f"{R}/evaluation/students/{{setting}}.examples.npz",
    log:
        f"{R}/logs/evaluate/students/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/evaluate/students/{{setting}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        stage="students",
        block=plan.evaluation(),
        data=D,
    script:
        "../../scripts/evaluate.py"


rule table1:
    input:
        **plan.settings_table,
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
        miniature=cfg.miniature is not None,
        version=VERSIONS["tables"],
    script:
        "../../scripts/table1.py"


if plan.teacher_settings:

    rule teachers:
        input:
            **plan.teachers_table,
        output:
            csv=f"{R}/teachers.csv",
            md=f"{R}/teachers.md",
            tex=f"{R}/teachers.tex",
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
            miniature=cfg.miniature is not None,
            version=VERSIONS["tables"],
        script:
            "../../scripts/teachers.py"


rule significance:
    input:
        **plan.settings_table,
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
        block=plan.significance(),
        version=VERSIONS["tables"],
    script:
        "../../scripts/significance.py"
