"""What a study comes to: experiments, the stages they share, the cells that are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from palimpsest.config import (
    CONFIG,
    Benchmark,
    Download,
    Method,
    Model,
    Study,
    Task,
    check_named,
    load,
)
from palimpsest.lineage import Lineage, Stage
from palimpsest.refusal import check_known
from palimpsest.study import checks
from palimpsest.study.stages import RESULTS, method_of, starts
from palimpsest.study.vocabulary import fetched


@dataclass(frozen=True)
class Experiment:
    """One matrix: a protocol with one model, method, order and seed, and its stages in order."""

    name: str  # a method preset that is tuned sequentially, or a reference of the study
    title: str
    protocol: str  # sequential, direct, joint or zero-shot
    benchmark: str
    model: str
    method: str | None
    order: str
    seed: int | None
    stages: tuple[Stage, ...]  # rows of the matrix; the base comes first where it is row 0
    only_learnt: bool = False  # whether tasks that are still to come are not evaluated

    @property
    def key(self) -> str:
        """What it is called beside published results: its seeds are one."""
        return f"{self.model} {self.name} {self.order}"

    def cells(self, stage: Stage, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tasks that a stage is evaluated on: all, or what it knows and held out."""
        if self.protocol == "direct":
            return stage.lineage.learnt
        if self.only_learnt and stage.parent:
            benchmark = load(Benchmark, self.benchmark)
            return (*benchmark.initial, *stage.lineage.learnt, *benchmark.held_out)
        return tasks


@dataclass(frozen=True)
class Plan:
    """A study with everything that its name implies."""

    name: str
    study: Study
    experiments: tuple[Experiment, ...]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the benchmark: the initial ones, its first order, those held out."""
        return load(Benchmark, self.study.benchmark).tasks

    @property
    def known(self) -> tuple[str, ...]:
        """The tasks that are known in the end: all but those held out."""
        return load(Benchmark, self.study.benchmark).known

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, bases and parents before those that need them.

        Those that a model is exported from come first; they may be in no experiment.
        """
        first = (stage for model in self.study.models for stage in starts(model))
        found = dict.fromkeys(stage for e in self.experiments for stage in e.stages)
        return tuple(dict.fromkeys((*first, *sorted(found, key=lambda s: len(s.lineage.steps)))))

    @property
    def trained(self) -> tuple[Stage, ...]:
        """The stages that are training jobs: all but the bases."""
        return tuple(stage for stage in self.stages if stage.parent)

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the study, and those that they were exported from."""
        return tuple(dict.fromkeys(stage.model for stage in self.stages))

    @property
    def data(self) -> tuple[str, ...]:
        """The tasks whose data is needed: those that are evaluated, and those that are learnt."""
        learnt = (task for stage in self.trained for task in stage.lineage.last)
        return tuple(dict.fromkeys((*self.tasks, *learnt)))

    @cached_property
    def cells(self) -> tuple[tuple[Stage, str], ...]:
        """Every cell once: a stage and a task that it is evaluated on."""
        found = ((s, t) for e in self.experiments for s in e.stages for t in e.cells(s, self.tasks))
        return tuple(dict.fromkeys(found))

    @property
    def downloads(self) -> tuple[str, ...]:
        """What must have been fetched: that of the tasks, of the models, and of concepts."""
        needy = [*(load(Task, t) for t in self.data), *(load(Model, m) for m in self.models)]
        concepts = (fetched(method_of(stage)) for stage in self.trained)
        names = chain((one.downloads for one in needy), concepts)
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def cell(self, stage: Stage, task: str) -> Path:
        """Return the directory of a cell, as the study evaluates it."""
        return stage.cell(RESULTS, self.study.evaluation.name, task)

    def scores(self, stage: Stage, task: str) -> list[Path]:
        """Return the scores of a cell, one file a measure."""
        return [self.cell(stage, task) / name / "scores.json" for name in self.study.measures]

    def is_scored(self, stage: Stage, task: str) -> bool:
        """Return whether a cell has been scored by every measure."""
        return all(path.exists() for path in self.scores(stage, task))

    @property
    def published(self) -> Path | None:
        """The file of results that are laid beside the study's, if there is one."""
        of = self.study.published
        return CONFIG / "published" / f"{of.file}.yaml" if of else None

    @cached_property
    def ahead(self) -> dict[Stage, int]:
        """How many tasks are learnt from each stage on, along the longest lineage through it."""
        ahead: dict[Stage, int] = {}
        for stage in self.trained:
            num_tasks = 0
            while stage.parent:
                num_tasks += len(stage.lineage.last)
                ahead[stage] = max(num_tasks, ahead.get(stage, 0))
                stage = stage.parent
        return ahead

    @property
    def titles(self) -> list[str]:
        """What a report calls things, and the experiments that it shows in their order."""
        tasks = [load(Task, task) for task in self.tasks]
        names = [f"{task.title}: {task.category}" for task in tasks]
        return [self.study.title, *names, *map(repr, self.experiments)]


def plan(name: str) -> Plan:
    """Load a study and all that it names; ConfigError before anything is planned."""
    study = load(Study, name)
    where = CONFIG / f"{name}.yaml"
    benchmark = checks.load_named(Benchmark, study.benchmark, f"{where}: benchmark")
    for order in study.orders:
        check_known(order, benchmark.orders, f"{where}: orders", "order")
    for task in benchmark.tasks:
        found = (key for key in ("initial", "held_out") if task in getattr(benchmark, key))
        key = next(found, "orders")
        config = checks.load_named(Task, task, f"{CONFIG}/benchmarks/{study.benchmark}.yaml: {key}")
        for download in config.downloads:
            check_named(Download, download, f"{CONFIG}/tasks/{task}.yaml: downloads")
    checks.check_evaluation(where, study, benchmark)
    methods = dict.fromkeys(study.methods, f"{where}: methods")
    for key, reference in study.references.items():
        checks.check_reference(f"{where}: references.{key}", key, study, benchmark)
        if reference.method:
            methods.setdefault(reference.method, f"{where}: references.{key}.method")
    for model_name in study.models:
        model = checks.load_named(Model, model_name, f"{where}: models")
        checks.check_made(model_name, model)
        checks.check_seeing(where, model_name, model, study)
        checks.check_probed(where, model_name, model, study)
        for method_name, named_at in methods.items():
            method = checks.load_named(Method, method_name, named_at)
            checks.check_batches(model_name, model, method_name, method, benchmark.to_learn)
            checks.check_trainable(model_name, model, method_name, method)
            checks.check_router(model_name, model, method_name, method)
            checks.check_concepts(method_name, method.of(model_name), benchmark.to_learn)
    planned = Plan(name, study, tuple(_experiments(study)))
    checks.check_lengths(where, planned.stages)
    checks.check_published(where, study, [one.key for one in planned.experiments])
    return planned


def _experiments(study: Study) -> Iterator[Experiment]:
    benchmark = load(Benchmark, study.benchmark)
    for model in study.models:
        for key, reference in study.references.items():
            for seed in study.seeds if reference.method else (None,):
                stages = _reference_stages(study, key, model, seed)
                yield Experiment(
                    key, reference.title, reference.protocol,
                    reference.benchmark or study.benchmark, model, reference.method,
                    "any", seed, stages,
                )  # fmt: skip
        for method in study.methods:
            title = load(Method, method).title
            for order in study.orders:
                for seed in study.seeds:
                    base = Stage(study.benchmark, model, Lineage())
                    path = Lineage.sequential(benchmark.orders[order])
                    stages = tuple(
                        Stage(study.benchmark, model, prefix, method, seed)
                        for prefix in path.prefixes
                    )
                    yield Experiment(
                        method, title, "sequential", study.benchmark, model, method,
                        order, seed, (base, *stages), study.evaluation.cells == "learnt",
                    )  # fmt: skip


def _reference_stages(study: Study, key: str, model: str, seed: int | None) -> tuple[Stage, ...]:
    reference = study.references[key]
    benchmark = reference.benchmark or study.benchmark
    tasks = load(Benchmark, benchmark).to_learn
    lineages = {
        "zero-shot": [Lineage()],
        "direct": [Lineage.sequential((task,)) for task in tasks],
        "joint": [Lineage.joint(tasks)],
    }[reference.protocol]
    return tuple(Stage(benchmark, model, line, reference.method, seed) for line in lineages)
