# The study, and where its files are. Nothing here reads a result or imports torch.

from palimpsest.config import Model, Task, load
from palimpsest.launch import train_command
from palimpsest.lineage import Stage
from palimpsest.metrics import metric
from palimpsest.study import plan, refuse_foreign_stages

STUDY = plan(config.get("study", "demo"))
EVALUATION = STUDY.study.evaluation
# Which cells a job serves: all of a stage, or the one that the wildcard names.
CELLS = STUDY.tasks if EVALUATION.fan_out == "stage" else ["{task}"]
ONE_CELL = "" if EVALUATION.fan_out == "stage" else "-{task}"

MANIFEST = "results/data/{task}/manifest.json"
STAGE = "results/stages/{stage}/stage"
CELL = "results/stages/{stage}/cells/{task}"
REPORT = f"results/reports/{STUDY.name}"

if workflow.is_main_process:
    refuse_foreign_stages(STUDY.stages)


wildcard_constraints:
    task=r"[^/]+",
    stage=r"[^/]+/[^/]+/(base|[^/]+/seed-\d+/.+)",


def resources_of(wildcards):
    """What a job of the wildcards' stage needs: the model's config says it."""
    return load(Model, Stage.parse(wildcards.stage).model).resources


def parent_checkpoint(wildcards):
    """The directory that a stage starts from; the base starts from the published weights."""
    parent = Stage.parse(wildcards.stage).parent
    return STAGE.format(stage=parent) if parent.method else []


def own_checkpoint(wildcards):
    """The directory of the stage that is evaluated; none for the base."""
    stage = Stage.parse(wildcards.stage)
    return STAGE.format(stage=stage) if stage.method else []


def learnt_data(wildcards):
    """The shards of the tasks that a stage learns."""
    return expand(MANIFEST, task=Stage.parse(wildcards.stage).lineage.last)


def metric_versions(wildcards):
    """The versions of the metrics of a job's cells: a new version scores them anew."""
    tasks = [wildcards.task] if ONE_CELL else CELLS
    return [metric(load(Task, task).metric).VERSION for task in tasks]
