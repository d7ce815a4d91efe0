# Generation and scoring are apart: a new metric, or a new version of one, generates nothing anew.
rule evaluate:
    input:
        stage=own_record,
        data=expand(MANIFEST, task=CELLS),
    output:
        expand(f"{CELL}/predictions.parquet", task=CELLS, allow_missing=True),
    log:
        f"results/logs/stages/{{stage}}/evaluate{ONE_CELL}.log",
    threads: lambda wildcards: resources_of(wildcards).threads
    resources:
        # Nobody writes down why an evaluation failed: the next attempt gets more of both.
        mem_mb=lambda wildcards, attempt: attempt * resources_of(wildcards).memory_mb,
        runtime=lambda wildcards, attempt: attempt * resources_of(wildcards).minutes,
        nodes=1,
        gpu=lambda wildcards: min(1, resources_of(wildcards).gpus) or None,
    params:
        tasks=CELLS,
        split=EVALUATION.split,
        batch=EVALUATION.batch,
        longest=lambda wildcards: [task.max_new_tokens for task in tasks_of(wildcards)],
    message:
        f"evaluate {{wildcards.stage}}{ON_TASK}"
    shell:
        "palimpsest evaluate {wildcards.stage} --tasks {params.tasks} "
        "--split {params.split} --batch {params.batch} > {log} 2>&1"


rule score:
    input:
        expand(f"{CELL}/predictions.parquet", task=CELLS, allow_missing=True),
    output:
        expand(f"{CELL}/scores.json", task=CELLS, allow_missing=True),
        expand(f"{CELL}/outcomes.parquet", task=CELLS, allow_missing=True),
    log:
        f"results/logs/stages/{{stage}}/score{ONE_CELL}.log",
    params:
        tasks=CELLS,
        split=EVALUATION.split,
        scoring=scoring,
    message:
        f"score {{wildcards.stage}}{ON_TASK}"
    shell:
        "palimpsest score {wildcards.stage} --tasks {params.tasks} "
        "--split {params.split} > {log} 2>&1"


rule evaluate_all:
    input:
        [f"{CELL}/scores.json".format(stage=stage, task=task) for stage, task in STUDY.cells],
