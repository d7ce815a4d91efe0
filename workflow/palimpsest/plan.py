"""A study as a person reads it before it runs, and as the report reads it after."""

from __future__ import annotations

from collections import Counter
from typing import Any

from palimpsest.config import Method, Model, Task, load
from palimpsest.files import read_json
from palimpsest.lineage import BASE, Stage
from palimpsest.provenance import commit
from palimpsest.report.spec import ExperimentView, RowView, StudyView, TaskView
from palimpsest.study import CONFIG, RESULTS, Experiment, Plan


def describe(plan: Plan) -> str:
    """Return what a study comes to: experiments, stages, cells, what is shared, time."""
    named = sum(1 for e in plan.experiments for stage in e.stages if stage.parent)
    done = {s for s in plan.trained if (s.directory(RESULTS) / "stage.json").exists()}
    left = [stage for stage in plan.trained if stage not in done]
    cells = plan.cells
    scored = [1 for stage, task in cells if (stage.cell(RESULTS, task) / "scores.json").exists()]
    total, to_do, shared = len(plan.trained), len(left), named - len(plan.trained)
    lines = [
        f"{plan.name}: {plan.study.title}",
        "",
        *_experiment_lines(plan),
        "",
        f"stages   {total} to train: {len(done)} done, {to_do} to do"
        + (f"; experiments share {shared}" if shared else ""),
        f"cells    {len(cells)} to score: {len(scored)} done, {len(cells) - len(scored)} to do",
        f"samples  {_samples_left(left)}",
        f"time     {_time_left(left, done)}",
    ]
    return "\n".join(lines)


def view(plan: Plan) -> StudyView:
    """Return what the report of a study reads."""
    return StudyView(
        name=plan.name,
        title=plan.study.title,
        benchmark=plan.study.benchmark,
        tasks=tuple(_task_view(task) for task in plan.tasks),
        experiments=tuple(_experiment_view(e, plan.tasks) for e in plan.experiments),
        results_root=RESULTS,
        commit=commit(),
    )


def _task_view(name: str) -> TaskView:
    task, data = load(Task, name, CONFIG), RESULTS / "data" / name
    return TaskView(
        name=name,
        title=task.title,
        category=task.category,
        metric=task.metric,
        chance=read_json(data / "chance.json")["value"],
        gallery=data / "gallery.parquet",
    )


def _experiment_view(experiment: Experiment, tasks: tuple[str, ...]) -> ExperimentView:
    rows = [
        RowView(
            lineage=str(stage.lineage),
            stage="+".join(stage.lineage.last) or BASE,
            learnt=stage.lineage.last,
            cells={task: stage.cell(RESULTS, task) for task in experiment.cells(stage, tasks)},
        )
        for stage in experiment.stages
    ]
    return ExperimentView(
        name=experiment.name,
        title=experiment.title,
        protocol=experiment.protocol,
        model=experiment.model,
        method=experiment.method or BASE,
        order=experiment.order,
        seed=experiment.seed,
        rows=tuple(rows),
    )


def _samples(stage: Stage) -> int | None:
    """Return how many samples a stage learns from; None as long as its data is not converted."""
    total = 0
    for task in stage.lineage.last:
        manifest = RESULTS / "data" / task / "manifest.json"
        if not manifest.exists():
            return None
        total += read_json(manifest)["splits"]["train"]["examples"]
    return round(total * load(Method, stage.method, CONFIG).training.epochs)


def _experiment_lines(plan: Plan) -> list[str]:
    """Return a table of the experiments."""
    rows = [("experiment", "protocol", "stages", "benchmark", "model", "order", "seed")]
    for e in plan.experiments:
        trained = sum(1 for stage in e.stages if stage.parent)
        seed = "–" if e.seed is None else e.seed
        rows.append((e.title, e.protocol, trained, e.benchmark, e.model, e.order, seed))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell!s:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _samples_left(left: list[Stage]) -> str:
    known = [n for n in map(_samples, left) if n is not None]
    unknown = len(left) - len(known)
    rest = f", and those of {unknown} stages whose data is not converted yet" if unknown else ""
    return f"{sum(known):,} to learn from{rest}"


def _time_left(left: list[Stage], done: set[Stage]) -> str:
    """Estimate the time that is left from the samples a second of the stages that are done."""
    samples: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for stage in done:
        record: dict[str, Any] = read_json(stage.directory(RESULTS) / "stage.json")
        samples[stage.model] += record["samples"]
        seconds[stage.model] += record["wall_seconds"]
    if not left:
        return "nothing is left to train"
    if any(_samples(stage) is None or stage.model not in seconds for stage in left):
        limit = max(load(Model, stage.model, CONFIG).resources.minutes for stage in left)
        return (
            "estimated once data is converted and a stage of each model is done; "
            f"a job's limit is {limit} minutes"
        )
    hours = sum(_samples(s) * seconds[s.model] / samples[s.model] for s in left) / 3600
    return f"{hours:.2f} hours of training jobs left, at the speed of those that are done"
