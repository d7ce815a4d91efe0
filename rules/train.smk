# One training job a stage. What it needs to go on after a failure is in …/resume/, which is no
# output: Snakemake removes outputs when a job starts and when it fails.
rule train:
    input:
        parent=parent_checkpoint,
        data=learnt_data,
    output:
        directory(STAGE),
    log:
        "results/logs/stages/{stage}/train.log",
    wildcard_constraints:
        stage=TRAINED,
    # The longest way first: it decides when the last job ends.
    priority: lambda wildcards: STUDY.ahead.get(Stage.parse(wildcards.stage), 0)
    threads: lambda wildcards: resources_of(wildcards).cores
    resources:
        mem_mb=lambda wildcards: resources_of(wildcards).memory_mb,
        runtime=lambda wildcards: resources_of(wildcards).minutes,
        nodes=lambda wildcards: resources_of(wildcards).nodes,
        gpu=lambda wildcards: resources_of(wildcards).gpus,
    params:
        history="results/stages/{stage}/resume/train.log",
    message:
        "train {wildcards.stage}"
    shell:
        # The time limit is no parameter: another one retrains nothing.
        "mkdir -p $(dirname {params.history}) && "
        "palimpsest train {wildcards.stage} --minutes {resources.runtime} 2>&1 "
        "| tee -a {params.history} > {log}"


rule train_all:
    input:
        expand(STAGE, stage=STUDY.trained),
