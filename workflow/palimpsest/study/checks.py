"""What is refused before any job is submitted, because its parts do not go together.

What is wrong in one file by itself is refused when that file is loaded (`config`).
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Study,
    T,
    Task,
    Vocabulary,
    check_named,
    load,
)
from palimpsest.lineage import Stage
from palimpsest.refusal import ConfigError, check_known
from palimpsest.study.answers import manner_of
from palimpsest.study.stages import RESULTS
from palimpsest.study.vocabulary import described, fetched, keywords_of

FOLDED = ("lora", "subset")  # the adapters whose `mergeable` says so; to ask them needs torch
LONGEST_PATH = 200  # characters; with rule, task and measure it stays below 255


def load_named(kind: type[T], name: str, where: str) -> T:
    check_named(kind, name, where)
    return load(kind, name)


def check_evaluation(where: Path, study: Study, benchmark: Benchmark) -> None:
    """ConfigError if a measure of a study, or the way that answers are made, is not to be had."""
    for measure in study.measures:
        if measure == AS_PUBLISHED:
            for task in benchmark.tasks:
                if load(Task, task).as_published is None:
                    raise ConfigError(
                        f"{where}: measures: {measure!r} needs `as_published` in "
                        f"{CONFIG}/tasks/{task}.yaml: the metric that follows the released scorer"
                    )
        elif measure not in RULES:
            load_named(Judge, measure, f"{where}: measures")
    if study.evaluation.generation == AS_PUBLISHED:
        for model in study.models:
            if load_named(Model, model, f"{where}: models").as_published is None:
                raise ConfigError(
                    f"{where}: evaluation.generation: {AS_PUBLISHED!r} needs `as_published` in "
                    f"{CONFIG}/models/{model}.yaml: how the released scripts have it answer"
                )
            for task in benchmark.tasks:
                manner_of(model, task, AS_PUBLISHED)


def check_reference(where: str, key: str, study: Study, benchmark: Benchmark) -> None:
    reference = study.references[key]
    if (reference.protocol == "zero-shot") != (reference.method is None):
        raise ConfigError(f"{where}: protocol zero-shot, and only it, has no method")
    if key in study.methods:
        raise ConfigError(f"{where}: the study has a method of this name; call it otherwise")
    if reference.benchmark:
        other = load_named(Benchmark, reference.benchmark, f"{where}.benchmark")
        if other.tasks != benchmark.tasks:
            raise ConfigError(
                f"{where}.benchmark: {reference.benchmark!r} has other tasks than "
                f"{study.benchmark!r}; their cells could not be compared"
            )


def check_made(name: str, model: Model, heirs: tuple[str, ...] = ()) -> None:
    """ConfigError if what a model is made of is not known or not fit, or where it would stand.

    `heirs` are the models that are exported from stages of this one.
    """
    where = f"{CONFIG}/models/{name}.yaml"
    for download in model.downloads:
        check_named(Download, download, f"{where}: parts")
    made = RESULTS / "models" / name
    if model.is_made and Path(model.weights) != made:
        raise ConfigError(
            f"{where}: weights: found {model.weights!r}: should be {str(made)!r}, where they are "
            "made; weights that are there as they are need `parts: null` and `exported: null`"
        )
    if model.exported is not None:
        _check_exported(where, model, (*heirs, name))


def _check_exported(where: str, model: Model, heirs: tuple[str, ...]) -> None:
    """ConfigError if a model cannot be exported from the stage that it names."""
    where = f"{where}: exported"
    try:
        stage = Stage.parse(model.exported)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if model.parts or stage.method is None or stage.model in heirs:
        raise ConfigError(
            f"{where}: found {str(stage)!r}: should be a trained stage of another model, and the "
            "model have no `parts` beside"
        )
    check_named(Benchmark, stage.benchmark, where)
    for task in stage.lineage.learnt:
        check_named(Task, task, where)
    adapter = load_named(Method, stage.method, where).of(stage.model).adapter.name
    if adapter not in FOLDED:
        raise ConfigError(
            f"{where}: adapter {adapter!r} of {CONFIG}/methods/{stage.method}.yaml cannot be "
            f"folded into the weights; name a stage of a method with {' or '.join(FOLDED)}"
        )
    check_made(stage.model, load_named(Model, stage.model, where), heirs)


def check_seeing(where: Path, model_name: str, model: Model, study: Study) -> None:
    """ConfigError if a study asks how alike tasks are to a model that does not say how it sees."""
    if study.similarity and model.tower is None:
        raise ConfigError(
            f"{where}: similarity: needs `tower` in {CONFIG}/models/{model_name}.yaml: the name of "
            "the module that looks at pictures"
        )


def check_probed(where: Path, model_name: str, model: Model, study: Study) -> None:
    """ConfigError if a model that is in pieces while it is trained should answer meanwhile."""
    if study.probes and model.zero_stage in (3, "auto"):
        raise ConfigError(
            f"{where}: probes: a model whose weights are shared out cannot answer; remove "
            f"`probes`, or set `zero_stage` in {CONFIG}/models/{model_name}.yaml below 3"
        )


def check_batches(
    model_name: str, model: Model, method_name: str, method: Method, tasks: tuple[str, ...]
) -> None:
    """ConfigError if micro-batch x ranks x accumulation cannot reach a global batch."""
    for step in (tasks, *((task,) for task in tasks)):
        try:
            batch = method.of(model_name, step).training.batch
            model.micro_batches_of(batch, model.resources.world_size)
        except ValueError as error:
            raise ConfigError(
                f"{CONFIG}/methods/{method_name}.yaml: training.batch: {error} "
                f"(resources of {CONFIG}/models/{model_name}.yaml)"
            ) from None


def check_trainable(model_name: str, model: Model, method_name: str, method: Method) -> None:
    """ConfigError if a method trains a model's own modules, and the model does not say which."""
    if method.of(model_name).adapter.name == "subset" and model.trainable is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: trainable: is missing: adapter 'subset' of "
            f"{CONFIG}/methods/{method_name}.yaml trains the modules that it names"
        )


def check_router(model_name: str, model: Model, method_name: str, method: Method) -> None:
    """ConfigError if a method tells tasks apart by their pictures, and the model does not see."""
    resolved = method.of(model_name)
    if (resolved.router or resolved.compares_tasks) and model.tower is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: tower: is missing: method "
            f"{CONFIG}/methods/{method_name}.yaml tells tasks apart by what that module sees"
        )


def check_concepts(method_name: str, method: Method, tasks: Sequence[str]) -> None:
    """ConfigError if a method knows tasks by concepts, and has none for a keyword of one."""
    name = getattr(method.router, "described", None)
    if name is None:
        return
    check_named(Vocabulary, name, f"{CONFIG}/methods/{method_name}.yaml: router.described")
    for download in fetched(method):
        check_named(Download, download, f"{CONFIG}/concepts/{name}.yaml: files")
    if not all((RESULTS / "downloads" / one / "download.json").exists() for one in fetched(method)):
        return  # it is looked at when they are there
    known = described(method)
    for task in tasks:
        for keyword in keywords_of(task):
            if keyword not in known:
                raise ConfigError(
                    f"{CONFIG}/concepts/{name}.yaml: {keyword}: is missing: a keyword of "
                    f"{CONFIG}/tasks/{task}.yaml, which needs texts for `image` and `text`"
                )


def check_lengths(where: Path, stages: tuple[Stage, ...]) -> None:
    """ConfigError if a stage's path is too long: Slurm's logs have it as the name of a folder."""
    for stage in stages:
        if len(stage.path) > LONGEST_PATH:
            raise ConfigError(
                f"{where}: the path of a stage has {len(stage.path)} characters, {LONGEST_PATH} "
                f"are allowed: give tasks (or benchmark, model, method) shorter names:\n  {stage}"
            )


def check_published(where: Path, study: Study, experiments: Sequence[str]) -> None:
    """ConfigError if what is to be laid beside a study's matrices is not there, or they are not.

    `experiments` are named as published results name them.
    """
    published = study.published
    if not published:
        return
    files = [path.stem for path in (CONFIG / "published").glob("*.yaml")]
    check_known(published.file, files, f"{where}: published.file", "file of config/published")
    for measure, matrices in published.beside.items():
        at = f"{where}: published.beside"
        check_known(measure, study.measures, at, "measure")
        for name in matrices:
            check_known(name, experiments, f"{at}.{measure}", "experiment")
