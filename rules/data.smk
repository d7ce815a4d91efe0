rule convert:
    output:
        manifest=MANIFEST,
        gallery="results/data/{task}/gallery.parquet",
    log:
        "results/logs/data/{task}/convert.log",
    priority: 100  # short, and everything waits for it
    params:
        task=lambda wildcards: load(Task, wildcards.task).fingerprint,
    message:
        "convert {wildcards.task}"
    shell:
        "palimpsest convert {wildcards.task} > {log} 2>&1"


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


# The demo's base from nothing; it is shipped, so nothing asks for this but you.
rule pretrain:
    output:
        directory("results/models/demo-llava"),
    log:
        "results/logs/models/demo-llava.log",
    threads: 2
    message:
        "pretrain the demo's base, about an hour; progress in {log}"
    shell:
        "palimpsest pretrain {output} > {log} 2>&1"


rule data_all:
    input:
        expand(MANIFEST, task=STUDY.tasks),
