# The study, where its files are, and what its jobs ask for. Nothing here imports torch.

import gc
import os
import re
import time
from functools import cache
from pathlib import Path

from palimpsest.attempts import Attempts
from palimpsest.config import (
    FIDELITY,
    METRIC,
    RULES,
    Download,
    Judge,
    JudgeResources,
    Method,
    Model,
    Task,
    load,
)
from palimpsest.embeddings import fingerprints
from palimpsest.evaluation import form
from palimpsest.files import fingerprint
from palimpsest.judging.version import of_work
from palimpsest.launch import DECIDED, job_resources
from palimpsest.leftovers import Leftovers, hold_directory, left_in_queue
from palimpsest.lineage import TASK_NAME, Stage
from palimpsest.metrics import metric
from palimpsest.study import (
    RESULTS,
    fetched,
    history,
    initial_of,
    manner_of,
    method_of,
    plan,
    refuse_foreign_stages,
    scorer,
)

gc.disable()  # until jobs start: what is planned stays, and looking for garbage in it takes long

LEFT = Leftovers({}, [])
try:
    # --config study=<name>, --configfile config/<name>.yaml, or the demo
    named = [Path(path).stem for path in workflow.configfiles]
    STUDY = plan(str(config.get("study", named[-1] if named else "demo")))
    if workflow.is_main_process:
        refuse_foreign_stages(STUDY.stages)
        ALONE, HELD = hold_directory()
        LEFT = left_in_queue(STUDY.trained, Path.cwd(), ALONE)
        os.environ[DECIDED] = str(time.time())  # jobs know when it was seen what is missing
except ValueError as error:
    raise WorkflowError(f"{error}\nNothing was run, changed or removed.") from None

EVALUATION = STUDY.study.evaluation
PROBES = (
    f"--probes {probes.every} --sample {probes.sample} --split {EVALUATION.split}"
    if (probes := STUDY.study.probes)
    else ""
)
BY_RULE = [name for name in STUDY.study.measures if name in RULES]
JUDGES = [name for name in STUDY.study.measures if name not in BY_RULE]
ASSEMBLED = [name for name in STUDY.models if load(Model, name).parts]
METHODS = list(dict.fromkeys(stage.method for stage in STUDY.trained))
COMPOSED = [load(Method, name).of(model) for name in METHODS for model in STUDY.models]
# What no method or model of the study has is no function either: Snakemake would ask it of each job.
COMPARING = any(method.compares_tasks for method in COMPOSED)
DESCRIBED = any(map(fetched, COMPOSED))
MADE = [name for name in STUDY.models if load(Model, name).is_made]
EXPORTED = [name for name in STUDY.models if load(Model, name).exported]
# What a command is told of how cells are computed.
HOW = f"--split {EVALUATION.split} --generation {EVALUATION.generation}" + (
    f" --sample {EVALUATION.sample}" if EVALUATION.sample else ""
)
# Which cells a job serves: all of a stage, or the one that the wildcard names.
CELLS = STUDY.tasks if EVALUATION.fan_out == "stage" else ["{task}"]
EMBEDDED = STUDY.known if EVALUATION.fan_out == "stage" else ["{task}"]
ONE_CELL = "" if EVALUATION.fan_out == "stage" else "-{task}"
ON_TASK = "" if EVALUATION.fan_out == "stage" else " on {wildcards.task}"

DOWNLOAD = "results/downloads/{download}/download.json"
WEIGHTS = "results/models/{model}/config.json"
MANIFEST = "results/data/{task}/manifest.json"
EMBEDDING = "results/embeddings/{model}/{task}.safetensors"
RECORD = "results/stages/{stage}/stage/stage.json"
CELL = f"results/stages/{{stage}}/cells/{EVALUATION.name}/{{task}}"
REPORT = f"results/reports/{STUDY.name}"
SCORES = [
    f"{CELL}/{measure}/scores.json".format(stage=stage, task=task)
    for stage, task in STUDY.cells
    for measure in STUDY.study.measures
]

ANY_TASK = TASK_NAME.pattern
MODEL, METHOD = ("|".join(map(re.escape, names)) for names in (STUDY.models, METHODS))
# Matched for every file of a study: `++` and `*+` take a name whole and try no shorter one.
STEP = r"[a-z0-9][a-z0-9._+-]*+"
TRAINED = rf"[^/]++/({MODEL})/({METHOD})/seed-\d++/{STEP}(/{STEP})*"


wildcard_constraints:
    task=ANY_TASK,
    model=MODEL,
    stage=rf"[^/]++/({MODEL})/base|{TRAINED}",


def model_of(wildcards):
    """The model of a job: that which its wildcards name, or that of their stage."""
    return wildcards.get("model") or Stage.parse(wildcards.stage).model


def resources_of(wildcards):
    """What a job needs: its model's config says it."""
    return load(Model, model_of(wildcards)).resources


def by_model(value):
    """A resource of a job, by its model's: no function where the study's models are alike in it.

    Snakemake takes a third of a millisecond to ask a function, of every job.
    """
    found = {value(load(Model, name).resources) for name in STUDY.models}
    return found.pop() if len(found) == 1 else lambda wildcards: value(resources_of(wildcards))


def more_memory(wildcards, attempt):
    """Nobody writes down why an evaluation failed: each attempt gets more, of memory and time."""
    return attempt * resources_of(wildcards).memory_mb


def more_time(wildcards, attempt):
    """The minutes of an evaluation, likewise."""
    return attempt * resources_of(wildcards).minutes


def of_stage(name):
    """One resource of a training job: by the model's config, and by what earlier attempts lacked."""

    def resource(wildcards, attempt):
        asked = asked_for(wildcards.stage, attempt)[name]
        if name == "slurm_extra" and (job := LEFT.training.get(Stage.parse(wildcards.stage))):
            return f"{asked or ''} --dependency=afterany:{job.id}".lstrip()
        return asked

    if name in ("mem_mb", "runtime") or LEFT.training:
        return resource
    return by_model(lambda resources: job_resources(resources, Attempts(RESULTS))[name])


@cache
def asked_for(stage, attempt):
    """All resources of a training job, once for each attempt: Slurm may be asked for them."""
    stage = Stage.parse(stage)
    return job_resources(load(Model, stage.model).resources, Attempts(stage.resume(RESULTS)))


def parent_record(wildcards):
    """The stage that a stage starts from; the base starts from the published weights."""
    parent = Stage.parse(wildcards.stage).parent
    return RECORD.format(stage=parent) if parent.method else []


def own_record(wildcards):
    """The stage that is evaluated; none for the base."""
    stage = Stage.parse(wildcards.stage)
    return RECORD.format(stage=stage) if stage.method else []


def learnt_data(wildcards):
    """The shards of the tasks that a stage learns, and of initial ones that it looks back on."""
    stage = Stage.parse(wildcards.stage)
    return expand(MANIFEST, task=[*initial_of(stage), *stage.lineage.last])


def concepts(wildcards):
    """The concepts by which a stage's method knows what is to be refused, if they are fetched."""
    return expand(DOWNLOAD, download=fetched(method_of(Stage.parse(wildcards.stage))))


def compared_embeddings(wildcards):
    """The embeddings of a stage's tasks and of the earlier ones, where its method compares them."""
    stage = Stage.parse(wildcards.stage)
    if not (history(stage) and method_of(stage).compares_tasks):
        return []
    tasks = [task for step in (*history(stage), stage.lineage.last) for task in step]
    return expand(EMBEDDING, model=stage.model, task=tasks)


def tasks_of(wildcards):
    """The tasks that a job serves: the one that its wildcard names, or all."""
    return [wildcards.task] if "task" in wildcards.keys() else STUDY.tasks


def answers_of_base(wildcards):
    """What the base model says to the same questions: answers are compared with its own."""
    base = Stage.parse(wildcards.stage).base
    return expand(f"{CELL}/predictions.parquet", stage=str(base), task=tasks_of(wildcards))


def scoring(wildcards):
    """How a job's cells are scored; a change, such as a metric's new version, scores anew."""
    model = Stage.parse(wildcards.stage).model if "stage" in wildcards.keys() else None
    return [
        f"{name} {metric(name).VERSION} {form.VERSION} {options} {load(Task, task).answer_format}"
        for task in tasks_of(wildcards)
        for name, options in (scorer(model, task, by) for by in (BY_RULE if model else [METRIC]))
    ]


def manner(wildcards):
    """How answers are made; a change makes them anew."""
    model = Stage.parse(wildcards.stage).model
    return [repr(manner_of(model, task, EVALUATION.generation)) for task in tasks_of(wildcards)]


def weights(wildcards):
    """The weights of a job's model, if they are made here."""
    name = model_of(wildcards)
    return WEIGHTS.format(model=name) if name in MADE else []


def embedded(wildcards):
    """Of what a job makes embeddings; a change makes them anew."""
    tasks = [wildcards.task] if "task" in wildcards.keys() else STUDY.known
    return [fingerprints(wildcards.model, task) for task in tasks]


def judge_of(wildcards):
    """The judge that a job asks."""
    return load(Judge, wildcards.judge)


def judge_needs(wildcards):
    """What a job that judges needs: all that the model does, if it runs in the job itself."""
    judge = judge_of(wildcards)
    if judge.kind != "endpoint":
        return judge.resources
    return JudgeResources(memory_mb=2000, minutes=judge.resources.minutes)


def judge_weights(wildcards):
    """The weights of a judge, if they are a download."""
    model = judge_of(wildcards).model
    return f"{model}/download.json" if model.startswith("results/downloads/") else []


def figure_labels(wildcards):
    """The columns of a figure in Snakemake's report: heatmap-lora is a heatmap of lora."""
    kind, _, shown = wildcards.figure.partition("-")
    by = {"by": wildcards.folder.rstrip("/") or STUDY.study.measures[0]}
    return {"figure": kind, "of": shown or "all"} | (by if len(STUDY.study.measures) > 1 else {})
