# What tasks are to a model before it learns any: their similarity is computed from it.
rule embed:
    input:
        data=expand(MANIFEST, task=EMBEDDED),
        weights=weights if MADE else [],
    output:
        expand(EMBEDDING, task=EMBEDDED, allow_missing=True),
    log:
        f"results/logs/embeddings/{{model}}/embed{ONE_CELL}.log",
    threads: by_model(lambda resources: resources.threads)
    resources:
        mem_mb=more_memory,
        runtime=more_time,
        nodes=1,
        gpu=by_model(lambda resources: min(1, resources.gpus) or None),
    params:
        tasks=EMBEDDED,
        embedded=embedded,
    message:
        f"embed{ON_TASK.replace(' on', '')} by {{wildcards.model}}"
    shell:
        "palimpsest embed {wildcards.model} {params.tasks} > {log} 2>&1"


rule embed_all:
    input:
        expand(EMBEDDING, model=STUDY.study.models, task=STUDY.known)
        if STUDY.study.similarity
        else [],
