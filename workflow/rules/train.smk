# Step 3: teachers and students of each setting, architecture and seed.
for stage in STAGES:
    one = stage.removesuffix("s")

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
