"""A study as a person reads it before it runs, and as the report reads it after."""

from __future__ import annotations

from collections import Counter
from typing import Any

from palimpsest.config import Method, Task, load
from palimpsest.files import read_json
from palimpsest.lineage import BASE, Stage
from palimpsest.provenance import commit
from palimpsest.report.spec import ExperimentView, RowView, StudyView, TaskView
from palimpsest.study import CONFIG, RESULTS, Experiment, Plan


def describe(plan: Plan) -> str:
    """Return what a study comes to: experiments, stages, cells, what is shared, time."""
    named = sum(len(e.stages) for e in plan.experiments)
    done = [s for s in plan.trained if (s.directory(RESULTS) / "stage.json").exists()]
    cells = [(stage, task) for stage in plan.stages for task in plan.tasks]
    scored = [1 for stage, task in cells if (stage.cell(RESULTS, task) / "scores.json").exists()]
    samples = {stage: _samples(stage) for stage in plan.trained}
    lines = [f"{plan.name}: {plan.study.title}", ""]
    lines += [_experiment_line(e, samples) for e in plan.experiments]
    lines += [
        "",
        f"stages to train  {len(plan.trained):6}   done {len(done)}, to do "
        f"{len(plan.trained) - len(done)}; {named - len(plan.stages)} more are shared",
        f"cells            {len(cells):6}   scored {len(scored)}, to do {len(cells) - len(scored)}",
        _samples_line(plan, samples),
        _time_line(samples, set(done)),
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
            cells={task: stage.cell(RESULTS, task) for task in tasks},
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


def _experiment_line(e: Experiment, samples: dict[Stage, int | None]) -> str:
    trained = sum(1 for stage in e.stages if stage in samples)
    where = f"{e.benchmark}, {e.model}" + (f", seed {e.seed}" if e.seed is not None else "")
    return f"  {e.title:16} {e.protocol:11} {trained:3} stages   order {e.order}; {where}"


def _samples_line(plan: Plan, samples: dict[Stage, int | None]) -> str:
    known = [n for n in samples.values() if n is not None]
    unknown = len(samples) - len(known)
    rest = f" and those of {unknown} stages whose data is not converted yet" if unknown else ""
    return f"samples       {sum(known):9,}   to learn from{rest}"


def _time_line(samples: dict[Stage, int | None], done: set[Stage]) -> str:
    """Estimate the time that is left from the samples a second of the stages that are done."""
    speeds: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for stage in done:
        record: dict[str, Any] = read_json(stage.directory(RESULTS) / "stage.json")
        speeds[stage.model] += record["samples"]
        seconds[stage.model] += record["wall_seconds"]
    left = [stage for stage in samples if stage not in done]
    if not left:
        return "time                  nothing is left to train"
    if any(samples[stage] is None or stage.model not in seconds for stage in left):
        return (
            "time                  known once data is converted and one stage of each model is done"
        )
    hours = sum(samples[s] * seconds[s.model] / speeds[s.model] for s in left) / 3600
    return f"time          {hours:9.2f}   hours of stages left, at the speed of those that are done"
