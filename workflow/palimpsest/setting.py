"""With what settings a study is run, as the report writes them for a paper."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from palimpsest.config import (
    AS_PUBLISHED,
    CONFIG,
    RULES,
    Benchmark,
    Download,
    Judge,
    Method,
    Model,
    Task,
    load,
    read_references,
)
from palimpsest.files import read_json
from palimpsest.report.spec import MethodView, ModelView, ReferenceView, Setting, Used
from palimpsest.study import RESULTS, Plan
from palimpsest.study.answers import manner_of

PARTS = {"adapter", "regulariser", "rehearsal", "router", "train_projector"}


def setting(plan: Plan) -> Setting:
    """Return the settings of a study; numbers of examples are those of tasks that are converted."""
    study, benchmark = plan.study, load(Benchmark, plan.study.benchmark)
    manifests = {task: RESULTS / "data" / task / "manifest.json" for task in benchmark.to_learn}
    tuned = (reference.method for reference in study.references.values() if reference.method)
    presets = tuple(dict.fromkeys((*study.methods, *tuned)))
    methods = [_method(preset, model, benchmark) for model in study.models for preset in presets]
    judges = [load(Judge, name) for name in study.measures if name not in RULES]
    citing = (
        benchmark, *judges, *methods,
        *(load(Task, task) for task in plan.data), *(load(Model, name) for name in plan.models),
    )  # fmt: skip
    cited = set(chain.from_iterable(one.cites for one in citing))
    return Setting(
        benchmark=benchmark.title,
        description=benchmark.description,
        orders={order: benchmark.orders[order] for order in study.orders},
        initial=benchmark.initial,
        fraction=benchmark.fraction,
        learnt_from={
            task: read_json(manifest)["splits"]["train"]["examples"]
            for task, manifest in manifests.items()
            if manifest.exists()
        },
        models=tuple(map(_model, study.models)),
        methods=tuple(methods),
        references=tuple(_references(plan)),
        split=study.evaluation.split,
        sample=study.evaluation.sample,
        lengths={task: _lengths(plan, task) for task in plan.tasks},
        as_published=study.evaluation.generation == AS_PUBLISHED,
        judges=tuple(Used(judge.title, "", judge.cites) for judge in judges),
        used=tuple(dict.fromkeys(_used(plan, judges))),
        cites=benchmark.cites,
        works={key: entry for key, entry in read_references(CONFIG).items() if key in cited},
    )


def _model(name: str) -> ModelView:
    model = load(Model, name)
    where = f"{model.weights} at {model.revision}" if model.revision else model.weights
    if model.parts:
        where = f"made of {' + '.join(load(Download, one).title for one in model.downloads)}"
    if model.exported:
        where = f"exported from stage {model.exported}"
    modules = f"adapters on modules `{model.adapter_targets}`"
    if model.trainable:
        modules += f", or tuned itself in `{model.trainable}`"
    return ModelView(model.title, where, model.precision, modules, model.cites)


def _method(name: str, model: str, benchmark: Benchmark) -> MethodView:
    method = load(Method, name).of(model)
    batches = {t: load(Method, name).of(model, (t,)).training.batch for t in benchmark.to_learn}
    return MethodView(
        method.title,
        load(Model, model).title,
        method.model_dump(include=PARTS, exclude_none=True),
        method.training.model_dump(exclude={"batch", "batches"}, exclude_none=True),
        batches,
        method.cites,
    )


def _references(plan: Plan) -> Iterator[ReferenceView]:
    for one in plan.study.references.values():
        method = load(Method, one.method).title if one.method else ""
        benchmark = load(Benchmark, one.benchmark).title if one.benchmark else ""
        yield ReferenceView(one.title, one.protocol, method, benchmark)


def _lengths(plan: Plan, task: str) -> str:
    """Return the most new tokens of an answer, by the models if they differ."""
    generation = plan.study.evaluation.generation
    manners = (manner_of(model, task, generation) for model in plan.study.models)
    return " or ".join(dict.fromkeys(str(manner.max_new_tokens) for manner in manners))


def _used(plan: Plan, judges: list[Judge]) -> Iterator[Used]:
    """Yield the data, the models, and what they are made of; a task's licence is of its files."""
    tasks = [load(Task, task) for task in plan.data]
    yield from (Used(task.title, task.licence, task.cites) for task in tasks)
    models = [load(Model, name) for name in plan.models]
    for model in models:
        if not model.is_made:
            yield Used(model.title, model.licence or _licence(model.weights), model.cites)
    of_tasks = set(chain.from_iterable(task.downloads for task in tasks))
    for download in (load(Download, name) for name in plan.downloads if name not in of_tasks):
        yield Used(download.title, download.licence)
    methods = [load(Method, stage.method) for stage in plan.trained]
    if any(method.router or method.compares_tasks for method in methods):
        for encoder in chain.from_iterable((m.text_encoder, m.image_text) for m in models):
            if encoder:
                yield Used(encoder.weights, _licence(encoder.weights))
    for judge in judges:
        yield Used(judge.model, _licence(judge.model), judge.cites)


def _licence(weights: str) -> str:
    """Return the licence of weights that are downloaded, or where the hub says it."""
    if Path(weights).parent == RESULTS / "downloads":
        return load(Download, Path(weights).name).licence
    on_hub = weights.count("/") == 1 and not Path(weights).exists()
    return f"see huggingface.co/{weights}" if on_hub else "not said"
