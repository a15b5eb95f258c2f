# PSDS1 of every model of a setting on the evaluation clips, and of the ensemble of its teachers; then the tables.
rule evaluate:
    input:
        unpack(lambda w: plan.models(w.stage, w.setting)),
        **plan.clips("eval"),
        coverage=ancient(plan.coverage("eval")),
        subsets=plan.miniature("audioset"),
    output:
        table=f"{R}/evaluation/{{stage}}/{{setting}}.csv",
        per_class=f"{R}/evaluation/{{stage}}/{{setting}}.per_class.csv",
        examples=f"{R}/evaluation/{{stage}}/{{setting}}.examples.npz",
    log:
        f"{R}/logs/evaluation/{{stage}}/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/evaluation/{{stage}}/{{setting}}.tsv"
    wildcard_constraints:
        stage="|".join(STAGES),
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        **plan.params(plan.evaluate_job),
    script:
        "../../scripts/evaluate.py"


rule table1:
    input:
        scores=[plan.scores(setting) for setting in cfg.settings],
        published="config/published/table1.csv",
    output:
        csv=f"{R}/table1.csv",
        md=f"{R}/table1.md",
        tex=f"{R}/table1.tex",
    log:
        f"{R}/logs/tables/table1.log",
    benchmark:
        f"{R}/benchmarks/tables/table1.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        **plan.params(plan.table_job, "table1"),
    script:
        "../../scripts/table.py"


if plan.teacher_settings:

    use rule table1 as teachers with:
        input:
            scores=plan.teacher_scores,
            published="config/published/teachers.csv",
        output:
            csv=f"{R}/teachers.csv",
            md=f"{R}/teachers.md",
            tex=f"{R}/teachers.tex",
        log:
            f"{R}/logs/tables/teachers.log",
        benchmark:
            f"{R}/benchmarks/tables/teachers.tsv"
        params:
            **plan.params(plan.table_job, "teachers"),


rule significance:
    input:
        [plan.scores(setting) for setting in cfg.settings],
    output:
        f"{R}/significance.csv",
    log:
        f"{R}/logs/tables/significance.log",
    benchmark:
        f"{R}/benchmarks/tables/significance.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        **plan.params(plan.significance_job),
    script:
        "../../scripts/significance.py"


# Step 2: mAP of the clip predictions, for models that are trained here and for published ones with a clip head.
rule evaluate_step2:
    input:
        **plan.weak_evaluation(),
        coverage=ancient(plan.coverage(*plan.weak_eval_groups)),
        weights=f"{R}/checkpoints/step2/{{model}}/model.safetensors",
        specs=f"{R}/checkpoints/step2/{{model}}/spec.json",
    output:
        f"{R}/evaluation/step2/{{model}}.csv",
    log:
        f"{R}/logs/evaluation/step2/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/evaluation/step2/{{model}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        **plan.params(plan.evaluate_step2_job),
    script:
        "../../scripts/evaluate_step2.py"


use rule table1 as table_step2 with:
    input:
        scores=plan.step2_scores,
        published="config/published/step2.csv",
    output:
        csv=f"{R}/step2.csv",
        md=f"{R}/step2.md",
        tex=f"{R}/step2.tex",
    log:
        f"{R}/logs/tables/step2.log",
    benchmark:
        f"{R}/benchmarks/tables/step2.tsv"
    params:
        **plan.params(plan.table_job, "step2"),
