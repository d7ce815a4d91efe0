"""What decides a stage's numbers, and the fingerprint by which its results are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest.config import Benchmark, Download, Method, Model, Task, load
from palimpsest.files import fingerprint, read_json
from palimpsest.lineage import Stage
from palimpsest.refusal import ConfigError
from palimpsest.study.vocabulary import described, fetched, keywords_of

RESULTS = Path("results")


@cache
def identity(stage: Stage) -> dict[str, Any]:
    """Return everything that decides a stage's numbers, the parent's fingerprint included."""
    model = load(Model, stage.model)
    if stage.parent is None:
        return {"model": _science(model)}
    method = method_of(stage)
    decisive = {
        "lineage": str(stage.lineage),
        "seed": stage.seed,
        "model": _science(model),
        "method": method.science(),
        "benchmark": load(Benchmark, stage.benchmark).science(),
        "tasks": {task: load(Task, task).science() for task in stage.lineage.last},
        "parent": stage_fingerprint(stage.parent),
    }
    if method.router or method.compares_tasks:
        decisive["comparing"] = model.comparing
    if downloads := fetched(method):
        decisive["comparing"] = model.aligning
        decisive["described"] = {one: load(Download, one).recipe for one in downloads}
    elif known := described(method):
        decisive["comparing"] = model.aligning
        own = [keyword for task in stage.lineage.last for keyword in keywords_of(task)]
        texts = {keyword: known[keyword].model_dump() for keyword in own or known}
        decisive["described"] = fingerprint(texts)
    if initial := initial_of(stage):  # a list: the order counts
        decisive["history"] = [[task, load(Task, task).science()] for task in initial]
    return decisive


def _science(model: Model) -> dict[str, Any]:
    """Return the settings of a model; of a stage that it was exported from, the fingerprint."""
    content = model.science()
    if model.exported:
        content["exported"] = stage_fingerprint(Stage.parse(model.exported))
    return content


def starts(model: str) -> tuple[Stage, ...]:
    """Return the stages that must be trained before a model's weights are there, oldest first."""
    exported = load(Model, model).exported
    if exported is None:
        return ()
    last = Stage.parse(exported)
    line = (replace(last, lineage=lineage) for lineage in last.lineage.prefixes)
    return (*starts(last.model), *line)


def history(stage: Stage) -> tuple[tuple[str, ...], ...]:
    """Return the steps that are known before a stage's last one, oldest first.

    They are the benchmark's initial tasks, each a step, and then the steps of the parent.
    """
    initial = load(Benchmark, stage.benchmark).initial
    return (*((task,) for task in initial), *stage.lineage.steps[:-1])


def initial_of(stage: Stage) -> tuple[str, ...]:
    """Return the initial tasks that a stage looks back on: the first of its lineage sees to all.

    What a method needs of these tasks if it looks back (importances, examples, keys) it hands on
    to the stages after it.
    """
    initial = load(Benchmark, stage.benchmark).initial
    if not initial or len(stage.lineage.steps) != 1:
        return ()
    return initial if method_of(stage).looks_back else ()


def method_of(stage: Stage) -> Method:
    """Return the method of a stage, as it is for its model and its last step."""
    return load(Method, stage.method).of(stage.model, stage.lineage.last)


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


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield one line for each setting that differs between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"    {key}: was {old!r}, is {new!r}"
