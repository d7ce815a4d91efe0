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
    threads: lambda wildcards: resources_of(wildcards).threads
    resources:
        mem_mb=lambda wildcards: resources_of(wildcards).memory_mb,
    params:
        command=lambda wildcards: train_command(Stage.parse(wildcards.stage)),
        history="results/stages/{stage}/resume/train.log",
    shell:
        "mkdir -p $(dirname {params.history}) && "
        "{params.command} 2>&1 | tee -a {params.history} > {log}"


rule train_all:
    input:
        expand(STAGE, stage=STUDY.trained),
