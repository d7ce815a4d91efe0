# A language model rates predictions: a rule of its own, so that a judge can be added later. What
# was ever asked is kept in results/judgements/, and a judge's server is started by the first job
# that asks it (workflow/palimpsest/judging/serving.py).
rule judge:
    input:
        predictions=expand(f"{CELL}/predictions.parquet", task=CELLS, allow_missing=True),
        weights=judge_weights,
    output:
        expand(f"{CELL}/{{judge}}/scores.json", task=CELLS, allow_missing=True),
    log:
        f"results/logs/stages/{{stage}}/judge-{{judge}}-{EVALUATION.name}{ONE_CELL}.log",
    wildcard_constraints:
        judge="|".join(JUDGES) or "no judge",
    threads: lambda wildcards: judge_needs(wildcards).cores
    resources:
        mem_mb=lambda wildcards, attempt: attempt * judge_needs(wildcards).memory_mb,
        runtime=lambda wildcards, attempt: attempt * judge_needs(wildcards).minutes,
        nodes=1,
        gpu=lambda wildcards: judge_needs(wildcards).gpus or None,
        # Options of sbatch for the job of the judge's server; a profile sets them.
        serving="",
    params:
        tasks=CELLS,
        how=HOW,
        judge=lambda wildcards: f"{of_work(judge_of(wildcards))}-{judge_of(wildcards).fingerprint}",
        kinds=lambda wildcards: [load(Task, task).answer_format for task in tasks_of(wildcards)],
    message:
        f"judge {{wildcards.stage}} by {{wildcards.judge}}{ON_TASK}"
    shell:
        "palimpsest judge {wildcards.stage} --judge {wildcards.judge} --tasks {params.tasks} "
        "{params.how} --sbatch={resources.serving:q} > {log} 2>&1"
