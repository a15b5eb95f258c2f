# Step 1: published checkpoints, and untrained weights for a baseline of Table II. Step 2: training on AudioSet Weak, or published checkpoints of it.
for step, name, folder, models in (
    ("untrained", "untrained", "untrained", plan.untrained),
    ("step1", "step1", "step1", cfg.models),
    ("step2", "step2_external", "step2/external", plan.step2_external),
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


for pack in plan.packs(plan.step2_trained):

    rule:
        name:
            pack.rule("step2")
        input:
            **plan.weak_clips(),
            coverage=ancient(plan.coverage(*GROUPS)),
            weights=pack.files(f"{R}/checkpoints/step1/{{model}}/model.safetensors"),
            specs=pack.files(f"{R}/checkpoints/step1/{{model}}/spec.json"),
            soft_labels=plan.clip_soft_labels(),
        output:
            weights=pack.files(f"{R}/checkpoints/step2/{{model}}/model.safetensors"),
            specs=pack.files(f"{R}/checkpoints/step2/{{model}}/spec.json"),
            histories=pack.files(f"{R}/checkpoints/step2/{{model}}/history.jsonl"),
        log:
            f"{R}/logs/step2/{pack.log}.log",
        benchmark:
            f"{R}/benchmarks/step2/{pack.log}.tsv"
        wildcard_constraints:
            model="|".join(plan.step2_trained),
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("step2")
        resources:
            **plan.resources("step2"),
        params:
            **plan.params(plan.step2_job, pack),
        script:
            "../../scripts/step2.py"


# Soft labels for Step 2 from models of this run: trained on labels alone, and averaged.
for pack in plan.packs(plan.weak_members):

    rule:
        name:
            pack.rule("weak_member")
        input:
            **plan.weak_clips(),
            coverage=ancient(plan.coverage(*GROUPS)),
            weights=pack.files(f"{R}/checkpoints/step1/{{model}}/model.safetensors"),
            specs=pack.files(f"{R}/checkpoints/step1/{{model}}/spec.json"),
            soft_labels=[],
        output:
            weights=pack.files(
                f"{R}/checkpoints/weak_members/{{model}}/model.safetensors"
            ),
            specs=pack.files(f"{R}/checkpoints/weak_members/{{model}}/spec.json"),
            histories=pack.files(
                f"{R}/checkpoints/weak_members/{{model}}/history.jsonl"
            ),
        log:
            f"{R}/logs/weak_members/{pack.log}.log",
        benchmark:
            f"{R}/benchmarks/weak_members/{pack.log}.tsv"
        wildcard_constraints:
            model="|".join(plan.weak_members),
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("step2")
        resources:
            **plan.resources("step2"),
        params:
            **plan.params(plan.weak_member_job, pack),
        script:
            "../../scripts/step2.py"


if plan.weak_members:

    rule weak_ensemble:
        input:
            **plan.weak_clips(),
            weights=[
                f"{R}/checkpoints/weak_members/{model}/model.safetensors"
                for model in plan.weak_members
            ],
            specs=[
                f"{R}/checkpoints/weak_members/{model}/spec.json"
                for model in plan.weak_members
            ],
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
