# Generation and scoring are apart: a new metric, or a new version of one, generates nothing anew.
rule evaluate:
    input:
        stage=own_record,
        data=expand(MANIFEST, task=CELLS),
        weights=weights if MADE else [],
    output:
        expand(f"{CELL}/predictions.parquet", task=CELLS, allow_missing=True),
    log:
        f"results/logs/stages/{{stage}}/evaluate-{EVALUATION.name}{ONE_CELL}.log",
    threads: by_model(lambda resources: resources.threads)
    resources:
        mem_mb=more_memory,
        runtime=more_time,
        nodes=1,
        gpu=by_model(lambda resources: min(1, resources.gpus) or None),
    params:
        tasks=CELLS,
        how=HOW,
        batch=EVALUATION.batch,
        manner=manner,
    message:
        f"evaluate {{wildcards.stage}}{ON_TASK}"
    shell:
        "palimpsest evaluate {wildcards.stage} --tasks {params.tasks} "
        "{params.how} --batch {params.batch} > {log} 2>&1"


rule score:
    input:
        expand(f"{CELL}/predictions.parquet", task=CELLS, allow_missing=True),
        answers_of_base if FIDELITY in BY_RULE else [],
    output:
        expand(f"{CELL}/{{measure}}/scores.json", task=CELLS, measure=BY_RULE, allow_missing=True),
    log:
        f"results/logs/stages/{{stage}}/score-{EVALUATION.name}{ONE_CELL}.log",
    params:
        tasks=CELLS,
        how=HOW,
        measures=BY_RULE,
        scoring=scoring,
    message:
        f"score {{wildcards.stage}}{ON_TASK}"
    shell:
        "palimpsest score {wildcards.stage} --tasks {params.tasks} "
        "{params.how} --measures {params.measures} > {log} 2>&1"


rule evaluate_all:
    input:
        lambda wildcards: SCORES,
