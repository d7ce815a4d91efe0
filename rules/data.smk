rule convert:
    input:
        lambda wildcards: expand(DOWNLOAD, download=load(Task, wildcards.task).downloads),
    output:
        manifest=MANIFEST,
        gallery="results/data/{task}/gallery.parquet",
    log:
        "results/logs/data/{task}/convert.log",
    priority: 100  # short, and everything waits for it
    # The demo's pictures are drawn on one core.
    threads: lambda wildcards: 1 if load(Task, wildcards.task).reader == "rendered" else 8
    params:
        task=lambda wildcards: load(Task, wildcards.task).fingerprint,
    message:
        "convert {wildcards.task}"
    shell:
        "palimpsest convert {wildcards.task} --threads {threads} > {log} 2>&1"


# What the most frequent answer scores: the line below which nothing was learnt.
rule chance:
    input:
        MANIFEST,
    output:
        "results/data/{task}/chance.json",
    log:
        "results/logs/data/{task}/chance.log",
    params:
        split=EVALUATION.split,
        scoring=scoring,
    message:
        "chance of {wildcards.task}"
    shell:
        "palimpsest chance {wildcards.task} --split {params.split} > {log} 2>&1"


rule data_all:
    input:
        expand(MANIFEST, task=STUDY.data),
