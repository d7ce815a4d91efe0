# One training job a stage. What it needs to go on after a failure is in …/resume/, which is no
# output: Snakemake removes outputs when a job starts and when it fails. For the same reason the
# output is the stage's record alone, which `palimpsest train` puts back if it was another job's.
rule train:
    input:
        parent=parent_record,
        data=learnt_data,
        # Made anew for more tasks they are the same: their fingerprints say so, their times do not.
        compared=ancient(compared_embeddings) if COMPARING else [],
        weights=weights if MADE else [],
        concepts=concepts if DESCRIBED else [],
    output:
        record=RECORD,
    log:
        "results/logs/stages/{stage}/train.log",
    wildcard_constraints:
        stage=TRAINED,
    # The longest way first: it decides when the last job ends.
    priority: lambda wildcards: STUDY.ahead.get(Stage.parse(wildcards.stage), 0)
    threads: by_model(lambda resources: resources.cores)
    resources:
        mem_mb=of_stage("mem_mb"),
        runtime=of_stage("runtime"),
        nodes=of_stage("nodes"),
        gpu=of_stage("gpu"),
        mpi=of_stage("mpi"),
        tasks=of_stage("tasks"),
        slurm_extra=of_stage("slurm_extra"),
    params:
        history="results/stages/{stage}/resume/train.log",
    message:
        "train {wildcards.stage}"
    shell:
        # The log is that of all attempts. A signal must reach palimpsest, and no shell before it.
        "mkdir -p $(dirname {params.history}) && touch {params.history} && "
        "ln -f {params.history} {log} && "
        f"exec palimpsest train {{wildcards.stage}} {PROBES} >> {{log}} 2>&1"


rule train_all:
    input:
        expand(RECORD, stage=STUDY.trained),
