# Table II: each task from each checkpoint, frozen and fine-tuned.


# The folder of a task: made from published files, or one that somebody has filled. Its clips are counted either way.
rule task_data:
    input:
        lambda w: plan.task_lists(w.task),
    output:
        state=f"{D}/tasks/{{task}}/state.json",
        counts=f"{D}/tasks/{{task}}/counts.tsv",
    log:
        f"{R}/logs/data/tasks/{{task}}.log",
    benchmark:
        f"{R}/benchmarks/data/tasks/{{task}}.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("acquire")
    resources:
        **plan.resources("acquire"),
    params:
        **plan.params(plan.task_data_job),
    script:
        "../../scripts/task_data.py"


for pack in plan.packs(cfg.models):

    rule:
        name:
            pack.rule("downstream")
        input:
            unpack(lambda w, pack=pack: plan.checkpoints(w.checkpoint, pack.of(w))),
            miniature=lambda w: plan.miniature(w.task),
            data=lambda w: plan.task_data(w.task),
        output:
            tables=pack.files(f"{R}/downstream/{{task}}/{{model}}/{{checkpoint}}.csv"),
            candidates=pack.files(
                f"{R}/downstream/{{task}}/{{model}}/{{checkpoint}}.candidates.json"
            ),
        log:
            f"{R}/logs/downstream/{{task}}/{{checkpoint}}/{pack.log}.log",
        benchmark:
            f"{R}/benchmarks/downstream/{{task}}/{{checkpoint}}/{pack.log}.tsv"
        conda:
            "../envs/framekd.yaml"
        threads: plan.threads("downstream")
        resources:
            **plan.resources("downstream"),
        params:
            **plan.params(plan.downstream_job, pack),
        script:
            "../../scripts/downstream.py"


use rule table1 as table2 with:
    input:
        scores=plan.downstream,
        candidates=plan.downstream_candidates,
        published="config/published/table2.csv",
    output:
        csv=f"{R}/table2.csv",
        md=f"{R}/table2.md",
        tex=f"{R}/table2.tex",
    log:
        f"{R}/logs/tables/table2.log",
    benchmark:
        f"{R}/benchmarks/tables/table2.tsv"
    params:
        **plan.params(plan.table_job, "table2"),
