# PSDS1 of every training on the evaluation clips, as it ends, and of the ensembles of teachers; then the tables.
for pack in plan.packs(cfg.models, cfg.seeds):
    scores = f"{R}/evaluation/{{stage}}/{{setting}}/{{model}}/seed{{seed}}"

    rule:
        name:
            pack.rule("evaluate")
        input:
            unpack(
                lambda w, pack=pack: plan.models(w.stage, w.setting, pack.members(w))
            ),
            **plan.clips("eval"),
            coverage=ancient(plan.coverage("eval")),
            subsets=plan.miniature("audioset"),
        output:
            tables=pack.files(f"{scores}.csv"),
            per_class=pack.files(f"{scores}.per_class.csv"),
            examples=(
                pack.files(f"{scores}.examples.npz")[:1]
                if cfg.seeds[0] in pack.seeds
                else []
            ),
        log:
            f"{R}/logs/evaluation/{{stage}}/{{setting}}/{pack.log}.log",
        benchmark:
            f"{R}/benchmarks/evaluation/{{stage}}/{{setting}}/{pack.log}.tsv"
        wildcard_constraints:
            stage="|".join(STAGES),
        priority: 1
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("evaluate")
        resources:
            **plan.resources("evaluate"),
        params:
            **plan.params(plan.evaluate_job, pack),
        script:
            "../../scripts/evaluate.py"


rule evaluate_ensemble:
    input:
        unpack(lambda w: plan.models("teachers", w.setting)),
        **plan.clips("eval"),
        coverage=ancient(plan.coverage("eval")),
        subsets=plan.miniature("audioset"),
    output:
        tables=[f"{R}/evaluation/ensembles/{{setting}}.csv"],
    log:
        f"{R}/logs/evaluation/ensembles/{{setting}}.log",
    benchmark:
        f"{R}/benchmarks/evaluation/ensembles/{{setting}}.tsv"
    priority: 1
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
        scores=[path for setting in cfg.settings for path in plan.scores(setting)],
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
            scores=[p for s in plan.teacher_settings for p in plan.teacher_scores(s)],
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
        [path for setting in cfg.settings for path in plan.scores(setting)],
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


# The authors' own Step 3 checkpoints on this site's evaluation clips, beside the paper's numbers. No part of `all`.
rule evaluate_published:
    input:
        **plan.clips("eval", own=False),
        coverage=ancient(plan.coverage("eval")),
        weights=f"{R}/checkpoints/step3/{{model}}/model.safetensors",
        specs=f"{R}/checkpoints/step3/{{model}}/spec.json",
        clips=[cfg.published.clips] if cfg.published.clips else [],
    output:
        f"{R}/evaluation/published/{{model}}.csv",
    log:
        f"{R}/logs/evaluation/published/{{model}}.log",
    benchmark:
        f"{R}/benchmarks/evaluation/published/{{model}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("evaluate")
    resources:
        **plan.resources("evaluate"),
    params:
        **plan.params(plan.evaluate_published_job),
    script:
        "../../scripts/evaluate_published.py"


use rule table1 as table_published with:
    input:
        scores=plan.published_scores,
        published="config/published/table1.csv",
    output:
        csv=f"{R}/published.csv",
        md=f"{R}/published.md",
        tex=f"{R}/published.tex",
    log:
        f"{R}/logs/tables/published.log",
    benchmark:
        f"{R}/benchmarks/tables/published.tsv"
    params:
        **plan.params(plan.table_job, "published"),
