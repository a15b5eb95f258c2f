# One page that shows everything: tables, curves, detections, coverage, time.
rule report:
    input:
        plan.tables,
    output:
        html=f"{R}/report.html",
        compute=f"{R}/compute.csv",
        orderings=[f"{R}/orderings.csv"] if plan.teacher_settings else [],
    log:
        f"{R}/logs/report.log",
    benchmark:
        f"{R}/benchmarks/report.tsv"
    conda:
        "../envs/framekd.yaml"
    threads: plan.threads("table")
    resources:
        **plan.resources("table"),
    params:
        results=R,
        data=D,
        version=VERSIONS["tables"],
        config=cfg.model_dump(mode="json", by_alias=True, exclude={"tracking"}),
    script:
        "../../scripts/report.py"
