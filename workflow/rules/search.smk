# Where a recipe says `learning_rate: search`: a training per rate of the grid, then the choice that later stages read.
for stage in ("teachers", "students"):
    searched = dict.fromkeys(setting for setting, _ in plan.searches(stage))

    rule:
        name:
            f"search_{stage}"
        input:
            coverage=f"{D}/coverage.tsv",
            start=lambda wildcards: plan.start(wildcards.setting, wildcards.model),
            ensemble=lambda wildcards, stage=stage: plan.soft_labels(
                stage, wildcards.setting
            ),
        output:
            result=f"{R}/search/{stage}/{{setting}}/{{model}}/{{rate}}/result.json",
        log:
            f"{R}/logs/search/{stage}/{{setting}}/{{model}}/{{rate}}.log",
        benchmark:
            f"{R}/benchmarks/search/{stage}/{{setting}}/{{model}}/{{rate}}.tsv"
        wildcard_constraints:
            setting="|".join(searched) or "none",
            rate=r"[\d.e+-]+",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads(stage.removesuffix("s"))
        resources:
            **plan.resources(stage.removesuffix("s")),
        params:
            block=lambda wildcards, stage=stage: plan.search(
                stage, wildcards.setting, wildcards.model, wildcards.rate
            ),
            data=D,
        script:
            "../../scripts/search.py"

    rule:
        name:
            f"choose_{stage}"
        input:
            lambda wildcards, stage=stage: plan.search_results(
                stage, wildcards.setting, wildcards.model
            ),
        output:
            rate=f"{R}/search/{stage}/{{setting}}/{{model}}.json",
            candidates=f"{R}/search/{stage}/{{setting}}/{{model}}/candidates.json",
        log:
            f"{R}/logs/choose/{stage}/{{setting}}/{{model}}.log",
        benchmark:
            f"{R}/benchmarks/choose/{stage}/{{setting}}/{{model}}.tsv"
        wildcard_constraints:
            setting="|".join(searched) or "none",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("table")
        resources:
            **plan.resources("table"),
        params:
            block=lambda wildcards, stage=stage: plan.choice(stage, wildcards.setting),
        script:
            "../../scripts/choose.py"
