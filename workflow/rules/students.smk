# Step 3, second half: students of each setting, architecture and seed. A job trains `seeds_per_job` seeds.
for seeds in plan.seed_packs:

    rule:
        name:
            "student_seed" + "_".join(map(str, seeds))
        input:
            coverage=f"{D}/coverage.tsv",
            start=lambda wildcards: plan.start(wildcards.setting, wildcards.model),
            rate=lambda wildcards: plan.chosen_rate(
                "students", wildcards.setting, wildcards.model
            ),
            ensemble=lambda wildcards: plan.soft_labels("students", wildcards.setting),
        output:
            weights=expand(
                f"{R}/students/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/model.safetensors",
                seed=seeds,
            ),
            spec=expand(
                f"{R}/students/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/spec.json",
                seed=seeds,
            ),
            history=expand(
                f"{R}/students/{{{{setting}}}}/{{{{model}}}}/seed{{seed}}/history.jsonl",
                seed=seeds,
            ),
        log:
            f"{R}/logs/students/{{setting}}/{{model}}/seed{'_'.join(map(str, seeds))}.log",
        benchmark:
            f"{R}/benchmarks/students/{{setting}}/{{model}}/seed{'_'.join(map(str, seeds))}.tsv"
        wildcard_constraints:
            setting="|".join(plan.student_settings) or "none",
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("student")
        resources:
            **plan.resources("student"),
        params:
            block=lambda wildcards: plan.student(wildcards.setting, wildcards.model),
            seeds=seeds,
            data=D,
        script:
            "../../scripts/student.py"
