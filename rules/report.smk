rule report:
    input:
        scores=rules.evaluate_all.input,
        chance=expand("results/data/{task}/chance.json", task=STUDY.tasks),
        gallery=expand("results/data/{task}/gallery.parquet", task=STUDY.tasks),
    output:
        report(
            directory(REPORT),
            patterns=["figures/{figure}.svg"],
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"results/logs/reports/{STUDY.name}.log",
    params:
        study=STUDY.name,
    shell:
        "palimpsest report {params.study} > {log} 2>&1"


rule report_all:
    input:
        rules.report.output,
