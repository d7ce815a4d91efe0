"""A study as a person reads it before it runs, and as the report reads it after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest import slurm
from palimpsest.config import CONFIG, METRIC, Benchmark, Judge, Model, Resources, Task, load
from palimpsest.embeddings import read_embeddings
from palimpsest.files import read_json
from palimpsest.lineage import BASE, Stage
from palimpsest.methods.similarity import by_modality, similarity
from palimpsest.provenance import commit
from palimpsest.refusal import check_known
from palimpsest.report.sections.costs import clock, hours
from palimpsest.report.spec import (
    MEASURES,
    Allocation,
    ExperimentView,
    Measure,
    PublishedRef,
    RowView,
    StudyView,
    TaskView,
    by_templates,
    judged,
)
from palimpsest.setting import setting
from palimpsest.study import RESULTS, Experiment, Plan, method_of

BOUND = (
    "  ≤ is a bound and no estimate: every stage takes all `minutes` of its model's config.\n"
    "  An estimate needs converted data, and a stage of the model that is done."
)


@dataclass(frozen=True)
class Work:
    """The stages of one model and method that are left to train."""

    model: str
    method: str
    stages: int
    samples: int | None  # None as long as some of their data is not converted
    speed: float | None  # samples a second; None where nothing was measured
    measured_on: str

    @property
    def is_bound(self) -> bool:
        """Whether the time is what the jobs may take, for want of what they will."""
        return self.samples is None or self.speed is None

    @property
    def seconds(self) -> float:
        """The time of the jobs, one after another."""
        if self.is_bound:
            return 60 * self.resources.minutes * self.stages
        return self.samples / self.speed

    @property
    def gpu_seconds(self) -> float:
        """The time of all GPUs; 0 for a model that is trained without."""
        return self.seconds * self.resources.nodes * self.resources.gpus

    @property
    def core_seconds(self) -> float:
        """The time of all CPU cores; 0 for a model that is trained on GPUs."""
        return 0 if self.gpu_seconds else self.seconds * self.resources.nodes * self.resources.cores

    @property
    def resources(self) -> Resources:
        """What a job of the model needs."""
        return load(Model, self.model).resources


def describe(plan: Plan) -> str:
    """Return what a study comes to: experiments, stages, cells, what is shared, what it costs."""
    named = [stage for e in plan.experiments for stage in e.stages if stage.parent]
    done = {s: read_json(_record(s)) for s in plan.trained if _record(s).exists()}
    left = [stage for stage in plan.trained if stage not in done]
    cells = plan.cells
    scored = [1 for stage, task in cells if plan.is_scored(stage, task)]
    total, to_do, shared = len(plan.trained), len(left), len(named) - len({*named})
    lines = [
        f"{plan.name}: {plan.study.title}",
        "",
        *_columns(_experiment_rows(plan), flush_left=7),
        "",
        f"stages   {total} to train: {len(done)} done, {to_do} to do"
        + (f"; experiments share {shared}" if shared else ""),
        f"cells    {len(cells)} to score: {len(scored)} done, {len(cells) - len(scored)} to do",
        "",
        *_cost_lines(left, done),
    ]
    return "\n".join(lines)


def targets(
    plan: Plan, method: str | None, seed: int | None, task: str | None, stages: bool
) -> list[Path]:
    """Return the files to ask Snakemake for, to have the cells of a method, a seed or a task.

    With `stages` it is the records of the stages instead, which train and evaluate nothing.
    ConfigError if a name is not one of the study's.
    """
    where = f"{CONFIG}/{plan.name}.yaml"
    wanted = {"method": method, "seed": seed, "task": task}
    known = {
        "method": {stage.method for stage in plan.trained},
        "seed": {stage.seed for stage in plan.trained},
        "task": set(plan.tasks),
    }
    for what, name in wanted.items():
        if name is not None:
            check_known(str(name), map(str, known[what]), where, what)
    chosen = [
        (stage, of)
        for stage, of in plan.cells
        if method in (None, stage.method) and seed in (None, stage.seed) and task in (None, of)
    ]
    if stages:
        return list(dict.fromkeys(_record(stage) for stage, _ in chosen if stage.parent))
    return list(chain(*(plan.scores(stage, of) for stage, of in chosen)))


def views(plan: Plan) -> list[StudyView]:
    """Return what the report of a study reads, by measure."""
    jobs = _jobs(plan.trained)
    similarities = _similarities(plan)
    settings = setting(plan)
    return [
        StudyView(
            name=plan.name,
            title=plan.study.title,
            benchmark=plan.study.benchmark,
            measure=MEASURES.get(name) or _judged(name),
            tasks=tuple(_task_view(task, name, task not in plan.known) for task in plan.tasks),
            experiments=tuple(_experiment_view(plan, e, name, jobs) for e in plan.experiments),
            results_root=RESULTS,
            commit=commit(),
            allocated=_allocation(plan.trained, jobs),
            similarities=similarities,
            setting=settings,
        )
        for name in plan.study.measures
    ]


def _judged(name: str) -> Measure:
    judge = load(Judge, name)
    if judge.kind == "templates":
        return by_templates(name, judge.title, judge.protocol)
    return judged(name, judge.title)


def _similarities(plan: Plan) -> dict[str, dict[str, np.ndarray]]:
    """Return how alike the tasks are to each model, in all and by modality; {} if no one asks."""
    if not plan.study.similarity:
        return {}
    found = {model: read_embeddings(RESULTS, model, plan.known) for model in plan.study.models}
    return {
        model: {"overall": similarity(embeddings), **by_modality(embeddings)}
        for model, embeddings in found.items()
    }


def _task_view(name: str, measure: str, held_out: bool) -> TaskView:
    task, data = load(Task, name), RESULTS / "data" / name
    chance = read_json(data / "chance.json")["value"] if measure == METRIC else float("nan")
    return TaskView(
        name=name,
        title=task.title,
        category=task.category,
        metric=task.metric,
        chance=chance,
        gallery=data / "gallery.parquet",
        held_out=held_out,
        cites=task.cites,
        wording=read_json(data / "manifest.json").get("wording", {}).get("from", ""),
    )


def _experiment_view(
    plan: Plan, experiment: Experiment, measure: str, jobs: dict[Stage, set[str]]
) -> ExperimentView:
    tasks = plan.tasks
    initial = load(Benchmark, experiment.benchmark).initial
    rows = [
        RowView(
            lineage=str(stage.lineage),
            stage="+".join(stage.lineage.last) or BASE,
            learnt=stage.lineage.last if stage.parent else initial,
            cells={t: plan.cell(stage, t) / measure for t in experiment.cells(stage, tasks)},
            record=_record(stage) if stage.parent else None,
            log=_logs(stage) / "train.log" if stage.parent else None,
            logs={t: _evaluation_log(plan, stage, t) for t in experiment.cells(stage, tasks)},
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
        published=_published(plan, experiment, measure),
        allocated=_allocation([stage for stage in experiment.stages if stage.parent], jobs),
    )


def _published(plan: Plan, experiment: Experiment, measure: str) -> tuple[PublishedRef, ...]:
    """Return the published matrix that is laid beside an experiment's, if there is one."""
    if not plan.published:
        return ()
    matrix = plan.study.published.beside.get(measure, {}).get(experiment.key)
    return (PublishedRef(plan.published, matrix),) if matrix else ()


def _jobs(stages: Iterable[Stage]) -> dict[Stage, set[str]]:
    """Return the Slurm jobs of each stage, without stages that were none or shared theirs.

    Stages share a job where Snakemake itself ran in one; nobody knows what part was whose.
    """
    records = {stage: read_json(_record(stage)) for stage in stages if _record(stage).exists()}
    jobs = {s: {a["job"] for a in record.get("attempts", ())} for s, record in records.items()}
    used = Counter(chain(*jobs.values()))
    no_own = {job for job, stages in used.items() if stages > 1} | {None}
    own = {stage: names for stage, names in jobs.items() if names and not names & no_own}
    # Asked once for all first: where nobody answers, experiments need not wait for that each.
    return own if slurm.usage(chain(*own.values()), Path.cwd()) else {}


def _allocation(stages: Collection[Stage], jobs: dict[Stage, set[str]]) -> Allocation | None:
    """Return what Slurm gave to the jobs of some stages; None unless it knows all of them."""
    if not all(stage in jobs for stage in stages):
        return None
    asked = list(chain(*(jobs[stage] for stage in stages)))
    used = slurm.usage(asked, Path.cwd())
    if used is None or used.jobs != set(asked):
        return None
    return Allocation(
        runs=used.runs,
        seconds=used.seconds,
        gpu_seconds=used.gpu_seconds,
        core_seconds=used.core_seconds,
        peak_memory_bytes=used.peak_memory_bytes,
    )


def _record(stage: Stage) -> Path:
    return stage.directory(RESULTS) / "stage.json"


def _logs(stage: Stage) -> Path:
    return RESULTS / "logs" / "stages" / stage.path


def _evaluation_log(plan: Plan, stage: Stage, task: str) -> Path:
    evaluation = plan.study.evaluation
    served = f"-{task}" if evaluation.fan_out == "cell" else ""
    return _logs(stage) / f"evaluate-{evaluation.name}{served}.log"


def _samples(stages: Iterable[Stage]) -> int | None:
    """Return how many samples stages learn from; None as long as some data is not converted."""
    total = 0
    for stage in stages:
        manifests = [RESULTS / "data" / task / "manifest.json" for task in stage.lineage.last]
        if not all(manifest.exists() for manifest in manifests):
            return None
        examples = sum(read_json(m)["splits"]["train"]["examples"] for m in manifests)
        training = method_of(stage).training
        total += training.num_steps(examples) * training.batch
    return total


def _speed(model: str, method: str, done: dict[Stage, Any]) -> tuple[float | None, str]:
    """Return the samples a second of stages that are done, and which these are.

    Methods differ in speed: those of other methods count only where there is none of the same.
    """
    alike = {stage: record for stage, record in done.items() if stage.model == model}
    same = [record for stage, record in alike.items() if stage.method == method]
    measured = same or list(alike.values())
    if not measured:
        return None, ""
    speed = sum(r["samples"] for r in measured) / sum(r["wall_seconds"] for r in measured)
    stages = "1 stage" if len(measured) == 1 else f"{len(measured)} stages"
    return speed, stages if same else f"{stages} of other methods"


def _cost_lines(left: list[Stage], done: dict[Stage, Any]) -> list[str]:
    """Return a table of the training that is left, by model and method and in all."""
    if not left:
        return ["nothing is left to train"]
    groups: dict[tuple[str, str], list[Stage]] = {}
    for stage in left:
        groups.setdefault((stage.model, stage.method), []).append(stage)
    works = [
        Work(model, method, len(stages), _samples(stages), *_speed(model, method, done))
        for (model, method), stages in groups.items()
    ]
    units = {"GPU-hours": "gpu_seconds", "core-hours": "core_seconds"}
    units = {unit: key for unit, key in units.items() if any(getattr(w, key) for w in works)}
    header = ("training left", "method", "stages", "samples", "samples/s", "job time", *units)
    rows = [(w.model, w.method, *_cost_cells([w], units.values())) for w in works]
    total = ("total", "", *_cost_cells(works, units.values()))
    bound = [BOUND] if any(w.is_bound for w in works) else []
    return [*_columns([header, *rows, total], flush_left=2), *bound]


def _cost_cells(works: list[Work], units: Iterable[str]) -> list[str]:
    """Return a row of the cost table from its third column on; a speed is that of one work."""
    samples = [w.samples for w in works]
    speeds = [f"{w.speed:.1f} ({w.measured_on})" if w.speed else "–" for w in works]
    times = [clock(sum(w.seconds for w in works))]
    times += [hours(sum(getattr(w, unit) for w in works) / 3600) for unit in units]
    at_most = "≤ " if any(w.is_bound for w in works) else ""
    return [
        str(sum(w.stages for w in works)),
        "–" if None in samples else f"{sum(samples):,}",
        speeds[0] if len(works) == 1 else "",
        *[time if time == "–" else at_most + time for time in times],
    ]


def _experiment_rows(plan: Plan) -> list[tuple[object, ...]]:
    """Return a table of the experiments."""
    rows = [("experiment", "protocol", "stages", "benchmark", "model", "order", "seed")]
    for e in plan.experiments:
        trained = sum(1 for stage in e.stages if stage.parent)
        seed = "–" if e.seed is None else e.seed
        rows.append((e.title, e.protocol, trained, e.benchmark, e.model, e.order, seed))
    return rows


def _columns(rows: list[tuple[object, ...]], flush_left: int) -> list[str]:
    """Return rows as lines, with the columns from `flush_left` on flush right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    sides = ["<" if column < flush_left else ">" for column in range(len(widths))]
    return [
        "  "
        + "  ".join(
            f"{cell!s:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
