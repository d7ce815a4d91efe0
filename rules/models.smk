# Weights that are no one's published file: put together from published parts, or trained.


# Published parts -> one directory that a model is loaded from.
rule assemble:
    input:
        lambda wildcards: expand(DOWNLOAD, download=load(Model, wildcards.model).downloads),
    output:
        WEIGHTS,
    log:
        "results/logs/models/{model}.log",
    wildcard_constraints:
        model="|".join(ASSEMBLED) or "no model",
    resources:
        mem_mb=lambda wildcards: load(Model, wildcards.model).resources.memory_mb,
        runtime=120,
    message:
        "assemble {wildcards.model}"
    shell:
        "palimpsest assemble {wildcards.model} > {log} 2>&1"


# A stage with what it has learnt folded in -> one such directory.
rule export:
    input:
        lambda wildcards: RECORD.format(stage=load(Model, wildcards.model).exported),
    output:
        WEIGHTS,
    log:
        "results/logs/models/{model}.log",
    wildcard_constraints:
        model="|".join(EXPORTED) or "no model",
    resources:
        mem_mb=lambda wildcards: load(Model, wildcards.model).resources.memory_mb,
        runtime=120,
    params:
        stage=lambda wildcards: load(Model, wildcards.model).exported,
        out=lambda wildcards: load(Model, wildcards.model).weights,
    message:
        "export {wildcards.model}"
    shell:
        "palimpsest export {params.stage} {params.out} > {log} 2>&1"


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
