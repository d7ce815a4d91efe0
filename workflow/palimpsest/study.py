"""What a study comes to: experiments, the stages they share, the cells that are evaluated.

Reads configuration, and of the results only the records of stages. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from palimpsest.config import (
    AS_PUBLISHED,
    CONFIG,
    METRIC,
    Benchmark,
    Download,
    Judge,
    Method,
    Model,
    Study,
    T,
    Task,
    check_named,
    load,
)
from palimpsest.files import fingerprint, read_json
from palimpsest.lineage import Lineage, Stage
from palimpsest.refusal import ConfigError, check_known

RESULTS = Path("results")
LONGEST_PATH = 200  # characters; with rule, task and measure it stays below 255


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
        """Return the tasks that one of its stages is evaluated on: all, or those it knows."""
        if self.protocol == "direct":
            return stage.lineage.learnt
        if self.only_learnt and stage.parent:
            return (*load(Benchmark, self.benchmark).initial, *stage.lineage.learnt)
        return tasks


@dataclass(frozen=True)
class Plan:
    """A study with everything that its name implies."""

    name: str
    study: Study
    experiments: tuple[Experiment, ...]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the benchmark: the initial ones, then its first order."""
        return load(Benchmark, self.study.benchmark).tasks

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage once, bases and parents before those that need them."""
        found = dict.fromkeys(stage for e in self.experiments for stage in e.stages)
        return tuple(sorted(found, key=lambda stage: len(stage.lineage.steps)))

    @property
    def trained(self) -> tuple[Stage, ...]:
        """The stages that are training jobs: all but the bases."""
        return tuple(stage for stage in self.stages if stage.parent)

    @cached_property
    def cells(self) -> tuple[tuple[Stage, str], ...]:
        """Every cell once: a stage and a task that it is evaluated on."""
        found = ((s, t) for e in self.experiments for s in e.stages for t in e.cells(s, self.tasks))
        return tuple(dict.fromkeys(found))

    @property
    def downloads(self) -> tuple[str, ...]:
        """What must have been fetched: that of the tasks, and that of the models."""
        needy = [*(load(Task, t) for t in self.tasks), *(load(Model, m) for m in self.study.models)]
        return tuple(dict.fromkeys(name for one in needy for name in one.downloads))

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
    benchmark = _load_named(Benchmark, study.benchmark, f"{where}: benchmark")
    for order in study.orders:
        check_known(order, benchmark.orders, f"{where}: orders", "order")
    for task in benchmark.tasks:
        key = "initial" if task in benchmark.initial else "orders"
        config = _load_named(Task, task, f"{CONFIG}/benchmarks/{study.benchmark}.yaml: {key}")
        for download in config.downloads:
            check_named(Download, download, f"{CONFIG}/tasks/{task}.yaml: downloads")
    _check_evaluation(where, study, benchmark)
    methods = dict.fromkeys(study.methods, f"{where}: methods")
    for key, reference in study.references.items():
        _check_reference(f"{where}: references.{key}", key, study, benchmark)
        if reference.method:
            methods.setdefault(reference.method, f"{where}: references.{key}.method")
    for model_name in study.models:
        model = _load_named(Model, model_name, f"{where}: models")
        _check_parts(model_name, model)
        _check_seeing(where, model_name, model, study)
        for method_name, named_at in methods.items():
            method = _load_named(Method, method_name, named_at)
            _check_batches(model_name, model, method_name, method, benchmark.to_learn)
            _check_trainable(model_name, model, method_name, method)
            _check_router(model_name, model, method_name, method)
    planned = Plan(name, study, tuple(_experiments(study)))
    _check_lengths(where, planned.stages)
    _check_published(where, planned)
    return planned


@cache
def identity(stage: Stage) -> dict[str, Any]:
    """Return everything that decides a stage's numbers, the parent's fingerprint included."""
    model = load(Model, stage.model)
    if stage.parent is None:
        return {"model": model.science()}
    decisive = {
        "lineage": str(stage.lineage),
        "seed": stage.seed,
        "model": model.science(),
        "method": method_of(stage).science(),
        "benchmark": load(Benchmark, stage.benchmark).science(),
        "tasks": {task: load(Task, task).science() for task in stage.lineage.last},
        "parent": stage_fingerprint(stage.parent),
    }
    if method_of(stage).router or method_of(stage).compares_tasks:
        decisive["comparing"] = model.comparing
    if initial := initial_of(stage):  # a list: the order counts
        decisive["history"] = [[task, load(Task, task).science()] for task in initial]
    return decisive


def history(stage: Stage) -> tuple[tuple[str, ...], ...]:
    """Return the steps that are known before a stage's last one, oldest first.

    They are the benchmark's initial tasks, each a step, and then the steps of the parent.
    """
    initial = load(Benchmark, stage.benchmark).initial
    return (*((task,) for task in initial), *stage.lineage.steps[:-1])


def initial_of(stage: Stage) -> tuple[str, ...]:
    """Return the initial tasks that a stage looks back on: the first of its lineage sees to all.

    A method looks back if it has a regulariser, rehearsal or a router; what they need of these
    tasks (importances, examples, keys) they hand on to the stages after it.
    """
    if len(stage.lineage.steps) != 1:
        return ()
    method = method_of(stage)
    looks_back = method.regulariser or method.rehearsal or method.router
    return load(Benchmark, stage.benchmark).initial if looks_back else ()


def method_of(stage: Stage) -> Method:
    """Return the method of a stage, as it is for its model and its last step."""
    return load(Method, stage.method).of(stage.model, stage.lineage.last)


@dataclass(frozen=True)
class Manner:
    """How a model answers the questions of one task; `of_model` are keys of its config."""

    task: str
    of_model: dict[str, Any]
    max_new_tokens: int
    drop_first: bool = False  # the first character of every answer is thrown away


def manner_of(model_name: str, task: str, generation: str) -> Manner:
    """Return how a model answers a task: as it was trained, or as released scripts have it answer.

    ConfigError if the model's `as_published` gives no length for the task.
    """
    model = load(Model, model_name)
    of_model = {"chat": model.chat, "pictures": model.pictures}
    if generation != AS_PUBLISHED:
        return Manner(task, of_model, load(Task, task).max_new_tokens)
    published = model.as_published
    length = _fitting(published.max_new_tokens, task)
    if length is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: as_published.max_new_tokens: no line fits task "
            f"{task!r}"
        )
    if published.chat:
        of_model["chat"] = published.chat
    if any(fnmatch(task, names) for names in published.crop):
        of_model["pictures"] = "crop"
    return Manner(task, of_model, length, published.drop_first)


def scorer(model: str, task: str, measure: str) -> tuple[str, dict[str, Any]]:
    """Return the metric, with its options, by which a measure scores the answers of a model."""
    config = load(Task, task)
    if measure == METRIC:
        return config.metric, config.metric_options
    published = load(Model, model).as_published
    return (published and _fitting(published.metrics, task)) or config.as_published, {}


def stage_fingerprint(stage: Stage) -> str:
    """Return the fingerprint by which a stage's directory, resume state and cells are known."""
    return fingerprint(identity(stage))


def refuse_foreign_stages(stages: tuple[Stage, ...]) -> None:
    """ConfigError if a finished stage was trained with another config than the present one.

    Nothing is retrained over it: a name stands for one configuration.
    """
    for stage in stages:
        record = stage.directory(RESULTS) / "stage.json"
        if record.exists():
            check_record(record, stage)


def check_record(record: Path, stage: Stage) -> dict[str, Any]:
    """Read a stage.json and return it; ConfigError if it is not of this stage and config."""
    found = read_json(record)
    if found["fingerprint"] != stage_fingerprint(stage):
        changes = "\n".join(_differences(found["identity"], identity(stage)))
        raise ConfigError(
            f"{record.parent}: this stage was trained with another config:\n{changes}\n"
            "  Give the changed config a new name to keep both, or remove this directory (and "
            "those of the stages after it) to train anew."
        )
    return found


def _fitting(values: dict[str, Any], task: str) -> Any:
    """Return the value of the first pattern that fits a task's name; None if none does."""
    return next((value for names, value in values.items() if fnmatch(task, names)), None)


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


def _check_lengths(where: str, stages: tuple[Stage, ...]) -> None:
    """ConfigError if a stage's path is too long: Slurm's logs have it as the name of a folder."""
    for stage in stages:
        if len(stage.path) > LONGEST_PATH:
            raise ConfigError(
                f"{where}: the path of a stage has {len(stage.path)} characters, {LONGEST_PATH} "
                f"are allowed: give tasks (or benchmark, model, method) shorter names:\n  {stage}"
            )


def _check_published(where: str, planned: Plan) -> None:
    """ConfigError if what is to be laid beside the study's matrices is not there."""
    published = planned.study.published
    if not published:
        return
    files = [path.stem for path in (CONFIG / "published").glob("*.yaml")]
    check_known(published.file, files, f"{where}: published.file", "file of config/published")
    for measure, matrices in published.beside.items():
        at = f"{where}: published.beside"
        check_known(measure, planned.study.measures, at, "measure")
        for name in matrices:
            names = [experiment.key for experiment in planned.experiments]
            check_known(name, names, f"{at}.{measure}", "experiment")


def _check_reference(where: str, key: str, study: Study, benchmark: Benchmark) -> None:
    reference = study.references[key]
    if (reference.protocol == "zero-shot") != (reference.method is None):
        raise ConfigError(f"{where}: protocol zero-shot, and only it, has no method")
    if key in study.methods:
        raise ConfigError(f"{where}: the study has a method of this name; call it otherwise")
    if reference.benchmark:
        other = _load_named(Benchmark, reference.benchmark, f"{where}.benchmark")
        if other.tasks != benchmark.tasks:
            raise ConfigError(
                f"{where}.benchmark: {reference.benchmark!r} has other tasks than "
                f"{study.benchmark!r}; their cells could not be compared"
            )


def _check_evaluation(where: str, study: Study, benchmark: Benchmark) -> None:
    """ConfigError if a measure of a study, or the way that answers are made, is not to be had."""
    for measure in study.measures:
        if measure == AS_PUBLISHED:
            for task in benchmark.tasks:
                if load(Task, task).as_published is None:
                    raise ConfigError(
                        f"{where}: measures: {measure!r} needs `as_published` in "
                        f"{CONFIG}/tasks/{task}.yaml: the metric that follows the released scorer"
                    )
        elif measure != METRIC:
            _load_named(Judge, measure, f"{where}: measures")
    if study.evaluation.generation == AS_PUBLISHED:
        for model in study.models:
            if _load_named(Model, model, f"{where}: models").as_published is None:
                raise ConfigError(
                    f"{where}: evaluation.generation: {AS_PUBLISHED!r} needs `as_published` in "
                    f"{CONFIG}/models/{model}.yaml: how the released scripts have it answer"
                )
            for task in benchmark.tasks:
                manner_of(model, task, AS_PUBLISHED)


def _check_parts(name: str, model: Model) -> None:
    """ConfigError if what a model is put together from is not known, or where it would stand."""
    where = f"{CONFIG}/models/{name}.yaml"
    for download in model.downloads:
        check_named(Download, download, f"{where}: parts")
    made = RESULTS / "models" / name
    if model.parts and Path(model.weights) != made:
        raise ConfigError(
            f"{where}: weights: found {model.weights!r}: should be {str(made)!r}, where its parts "
            "are put together; weights that are there as they are need `parts: null`"
        )


def _check_seeing(where: Path, model_name: str, model: Model, study: Study) -> None:
    """ConfigError if a study asks how alike tasks are to a model that does not say how it sees."""
    if study.similarity and model.tower is None:
        raise ConfigError(
            f"{where}: similarity: needs `tower` in {CONFIG}/models/{model_name}.yaml: the name of "
            "the module that looks at pictures"
        )


def _check_batches(
    model_name: str, model: Model, method_name: str, method: Method, tasks: tuple[str, ...]
) -> None:
    """ConfigError if micro-batch x ranks x accumulation cannot reach a global batch."""
    for step in (tasks, *((task,) for task in tasks)):
        try:
            batch = method.of(model_name, step).training.batch
            model.micro_batch_of(batch, model.resources.world_size)
        except ValueError as error:
            raise ConfigError(
                f"{CONFIG}/methods/{method_name}.yaml: training.batch: {error} "
                f"(resources of {CONFIG}/models/{model_name}.yaml)"
            ) from None


def _check_trainable(model_name: str, model: Model, method_name: str, method: Method) -> None:
    """ConfigError if a method trains a model's own modules, and the model does not say which."""
    if method.of(model_name).adapter.name == "subset" and model.trainable is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: trainable: is missing: adapter 'subset' of "
            f"{CONFIG}/methods/{method_name}.yaml trains the modules that it names"
        )


def _check_router(model_name: str, model: Model, method_name: str, method: Method) -> None:
    """ConfigError if a method tells tasks apart by their pictures, and the model does not see."""
    resolved = method.of(model_name)
    if (resolved.router or resolved.compares_tasks) and model.tower is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: tower: is missing: method "
            f"{CONFIG}/methods/{method_name}.yaml tells tasks apart by what that module sees"
        )


def _load_named(kind: type[T], name: str, where: str) -> T:
    check_named(kind, name, where)
    return load(kind, name)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield one line for each setting that differs between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"    {key}: was {old!r}, is {new!r}"
