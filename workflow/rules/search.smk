# Where a recipe of Step 2, of teachers or of students says `learning_rate: search`: a training per rate of the grid, then
# the choice.
for stage in SEARCHED:
    searched = "|".join(dict.fromkeys(s for s, _ in plan.searches(stage))) or "none"

    rule:
        name:
            f"search_{stage}"
        input:
            unpack(lambda w, stage=stage: plan.search_start(stage, w.setting, w.model)),
            unpack(lambda w, stage=stage: plan.search_clips(stage, w.setting)),
            coverage=ancient(
                lambda w, stage=stage: plan.search_coverage(stage, w.setting)
            ),
            soft_labels=lambda w, stage=stage: plan.search_soft_labels(stage, w.setting),
        output:
            f"{R}/search/{stage}/{{setting}}/{{model}}/{{rate}}/result.json",
        log:
            f"{R}/logs/search/{stage}/{{setting}}/{{model}}/{{rate}}.log",
        benchmark:
            f"{R}/benchmarks/search/{stage}/{{setting}}/{{model}}/{{rate}}.tsv"
        wildcard_constraints:
            setting=searched,
            rate=r"[\d.e+-]+",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads(stage.removesuffix("s"))
        resources:
            **plan.resources(stage.removesuffix("s")),
        params:
            **plan.params(plan.search_job, stage),
        script:
            "../../scripts/search.py"

    rule:
        name:
            f"choose_{stage}"
        input:
            lambda w, stage=stage: plan.candidates(stage, w.setting, w.model),
        output:
            rate=f"{R}/search/{stage}/{{setting}}/{{model}}.json",
            candidates=f"{R}/search/{stage}/{{setting}}/{{model}}/candidates.json",
        log:
            f"{R}/logs/choose/{stage}/{{setting}}/{{model}}.log",
        benchmark:
            f"{R}/benchmarks/choose/{stage}/{{setting}}/{{model}}.tsv"
        wildcard_constraints:
            setting=searched,
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("table")
        resources:
            **plan.resources("table"),
        params:
            **plan.params(plan.choose_job, stage),
        script:
            "../../scripts/choose.py"
