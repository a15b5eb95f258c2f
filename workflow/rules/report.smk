# One page that shows everything: tables, curves, detections, coverage, time.
rule report:
    input:
        **plan.report_inputs(),
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
        **plan.params(plan.report_job),
    script:
        "../../scripts/report.py"
