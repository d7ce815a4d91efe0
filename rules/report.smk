rule report:
    input:
        scores=SCORES,
        chance=expand("results/data/{task}/chance.json", task=STUDY.tasks),
        gallery=expand("results/data/{task}/gallery.parquet", task=STUDY.tasks),
        published=STUDY.published or [],
        embeddings=rules.embed_all.input,
    output:
        report(
            directory(REPORT),
            # The same figure for one column of a paper is no entry of its own.
            patterns=[r"{folder,([^/]+/)?}figures/{figure,((?!-column)[^/])+}.svg"],
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels=figure_labels,
        ),
    log:
        f"results/logs/reports/{STUDY.name}.log",
    params:
        study=STUDY.name,
        titles=fingerprint(STUDY.titles),
    message:
        f"report {REPORT}"
    shell:
        "palimpsest report {params.study} > {log} 2>&1"


rule report_all:
    input:
        rules.report.output,
