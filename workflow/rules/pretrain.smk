# Step 1: published checkpoints, and untrained weights for a baseline of Table II. Step 2: training on AudioSet Weak, or
# published checkpoints of it. Step 3: published checkpoints, for results/published.csv alone.
for step, name, folder, models in (
    ("untrained", "untrained", "untrained", plan.untrained),
    ("step1", "step1", "step1", cfg.models),
    ("step2", "step2_external", "step2/external", plan.step2_external),
    ("step3", "step3_published", "step3", plan.published_models),
):
    for pack in plan.packs(models):

        rule:
            name:
                pack.rule(name)
            output:
                weights=pack.files(
                    f"{R}/checkpoints/{step}/{{model}}/model.safetensors"
                ),
                specs=pack.files(f"{R}/checkpoints/{step}/{{model}}/spec.json"),
            log:
                f"{R}/logs/{folder}/{pack.log}.log",
            benchmark:
                f"{R}/benchmarks/{folder}/{pack.log}.tsv"
            wildcard_constraints:
                model="|".join(models),
            conda:
                "../envs/framekd.yaml"
            threads: plan.threads("step1")
            resources:
                **plan.resources("step1"),
            params:
                **plan.params(plan.checkpoint_job, step, pack),
            script:
                "../../scripts/checkpoint.py"


# Step 2 of the models that are trained here, and the models whose averaged logits it learns from: these are trained on
# labels alone.
for name, folder, setting, soft, job in (
    ("step2", "step2", "trained", plan.clip_soft_labels(), plan.step2_job),
    ("weak_member", "weak_members", "members", [], plan.weak_member_job),
):
    models = plan.models_of("step2", setting)

    for pack in plan.packs(models):

        rule:
            name:
                pack.rule(name)
            input:
                **plan.weak_clips(),
                coverage=ancient(plan.coverage(*GROUPS)),
                weights=pack.files(f"{R}/checkpoints/step1/{{model}}/model.safetensors"),
                specs=pack.files(f"{R}/checkpoints/step1/{{model}}/spec.json"),
                soft_labels=soft,
                rates=lambda w, setting=setting, pack=pack: plan.rates(
                    "step2", setting, pack.of(w)
                ),
            output:
                weights=pack.files(
                    f"{R}/checkpoints/{folder}/{{model}}/model.safetensors"
                ),
                specs=pack.files(f"{R}/checkpoints/{folder}/{{model}}/spec.json"),
                histories=pack.files(
                    f"{R}/checkpoints/{folder}/{{model}}/history.jsonl"
                ),
            log:
                f"{R}/logs/{folder}/{pack.log}.log",
            benchmark:
                f"{R}/benchmarks/{folder}/{pack.log}.tsv"
            wildcard_constraints:
                model="|".join(models),
            conda:
                "../envs/framekd.yaml"
            threads: plan.threads("step2")
            resources:
                **plan.resources("step2"),
            params:
                **plan.params(job, pack),
            script:
                "../../scripts/step2.py"


if plan.weak_members:

    rule weak_ensemble:
        input:
            **plan.weak_clips(),
            **plan.checkpoints("weak_members", plan.weak_members),
        output:
            f"{R}/ensembles/step2/clips.h5",
        log:
            f"{R}/logs/ensembles/step2/clips.log",
        benchmark:
            f"{R}/benchmarks/ensembles/step2/clips.tsv"
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("ensemble")
        resources:
            **plan.resources("ensemble"),
        params:
            **plan.params(plan.weak_ensemble_job),
        script:
            "../../scripts/weak_ensemble.py"
