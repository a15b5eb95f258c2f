# Step 3: teachers and students of each setting, architecture and seed, and the searches of their learning rates.
for stage in STAGES:
    one = stage.removesuffix("s")
    searched = dict.fromkeys(setting for setting, _ in plan.searches(stage))

    # A job trains `models_per_job` models with `seeds_per_job` seeds each.
    for pack in plan.packs(cfg.models, cfg.seeds):

        rule:
            name:
                pack.rule(one)
            input:
                unpack(lambda w, pack=pack: plan.start(w.setting, pack.of(w))),
                **plan.clips("train"),
                coverage=ancient(plan.coverage("strong")),
                rates=lambda w, stage=stage, pack=pack: plan.rates(
                    stage, w.setting, pack.of(w)
                ),
                soft_labels=lambda w, stage=stage: plan.soft_labels(stage, w.setting),
            output:
                weights=pack.files(
                    f"{R}/{stage}/{{setting}}/{{model}}/seed{{seed}}/model.safetensors"
                ),
                specs=pack.files(
                    f"{R}/{stage}/{{setting}}/{{model}}/seed{{seed}}/spec.json"
                ),
                histories=pack.files(
                    f"{R}/{stage}/{{setting}}/{{model}}/seed{{seed}}/history.jsonl"
                ),
            log:
                f"{R}/logs/{stage}/{{setting}}/{pack.log}.log",
            benchmark:
                f"{R}/benchmarks/{stage}/{{setting}}/{pack.log}.tsv"
            wildcard_constraints:
                setting="|".join(plan.settings_of(stage)) or "none",
            conda:
                "../envs/framekd.yaml"
            threads: plan.threads(one)
            resources:
                **plan.resources(one),
            params:
                **plan.params(plan.train_job, stage, pack),
            script:
                "../../scripts/train.py"

    # Where a recipe says `learning_rate: search`: a training per rate of the grid, then the choice.
    rule:
        name:
            f"search_{stage}"
        input:
            unpack(lambda w: plan.start(w.setting, [w.model])),
            unpack(lambda w, stage=stage: plan.search_clips(stage, w.setting)),
            coverage=ancient(
                lambda w, stage=stage: plan.search_coverage(stage, w.setting)
            ),
            soft_labels=lambda w, stage=stage: plan.soft_labels(stage, w.setting),
        output:
            f"{R}/search/{stage}/{{setting}}/{{model}}/{{rate}}/result.json",
        log:
            f"{R}/logs/search/{stage}/{{setting}}/{{model}}/{{rate}}.log",
        benchmark:
            f"{R}/benchmarks/search/{stage}/{{setting}}/{{model}}/{{rate}}.tsv"
        wildcard_constraints:
            setting="|".join(searched) or "none",
            rate=r"[\d.e+-]+",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads(one)
        resources:
            **plan.resources(one),
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
            setting="|".join(searched) or "none",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("table")
        resources:
            **plan.resources("table"),
        params:
            **plan.params(plan.choose_job, stage),
        script:
            "../../scripts/choose.py"
