# Step 3, first half: teachers of each setting, architecture and seed. A job trains `seeds_per_job` seeds.
for seeds in plan.seed_packs:

    rule:
        name:
            "teacher_seed" + "_".join(map(str, seeds))
        input:
            coverage=f"{D}/coverage.tsv",
            start=lambda wildcards: plan.start(wildcards.setting, wildcards.model),
            rate=lambda wildcards: plan.chosen_rate(
                "teachers", wildcards.setting, wildcards.model
            ),
        output:
            weights=expand(
                f"{R}/teachers/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/model.safetensors",
                seed=seeds,
            ),
            spec=expand(
                f"{R}/teachers/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/spec.json",
                seed=seeds,
            ),
            history=expand(
                f"{R}/teachers/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/history.jsonl",
                seed=seeds,
            ),
        log:
            f"{R}/logs/teachers/{{setting}}/{{model}}/seed{'_'.join(map(str, seeds))}.log",
        benchmark:
            f"{R}/benchmarks/teachers/{{setting}}/{{model}}/seed{'_'.join(map(str, seeds))}.tsv"
        wildcard_constraints:
            setting="|".join(plan.teacher_settings) or "none",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("teacher")
        resources:
            **plan.resources("teacher"),
        params:
            block=lambda wildcards: plan.teacher(wildcards.setting, wildcards.model),
            seeds=seeds,
            data=D,
        script:
            "../../scripts/teacher.py"
